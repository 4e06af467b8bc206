"""What W&B's own file of a run holds, up to where a killed process left it.

The file is LevelDB's log: blocks of records with a checksum each. W&B writes whole blocks, so a
kill leaves what was told before some point, and a torn record there, at which `wandb sync` ends.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

MAGIC, HEADER, BLOCK = b":W&B\xe1\xbe\x00", struct.Struct("<IHB"), 32768
"""How a file begins, what is before each piece (checksum, length, kind), and a block's bytes."""

WHOLE, LAST = 1, 4
"""Kinds of a piece that end a record."""


def settled(file: Path) -> int | None:
    """Make a file of a process that is gone one that `wandb sync` takes.

    What is torn is cut off; where nothing of the run is there, its folder is removed. Returns the
    step after the last row of figures, 0 where there is none; None where the folder is gone.
    """
    end, step, knows_run = len(MAGIC), 0, False
    for end, data in _records(file.read_bytes()):  # noqa: B007 # the last one counts
        record = Record.FromString(data)
        knows_run = knows_run or record.WhichOneof("record_type") == "run"
        step = max(step, _after(record))
    if not knows_run:
        shutil.rmtree(file.parent)
        return None
    if end < file.stat().st_size:
        os.truncate(file, end)
    return step


def _after(record: Record) -> int:
    """Return the step after a row of figures; 0 for any other record."""
    if record.WhichOneof("record_type") != "history":
        return 0
    items = record.history.item
    steps = (one.value_json for one in items if "_step" in (one.key, *one.nested_key))
    return max((int(text) + 1 for text in steps), default=0)


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a file that are there whole, each with the byte after it."""
    if not data.startswith(MAGIC):
        return
    place, joined = len(MAGIC), b""
    while place + HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, place)
        place += HEADER.size
        piece = data[place : place + length]
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        place += length
        joined += piece
        if kind in (WHOLE, LAST):
            yield place, joined
            joined = b""
