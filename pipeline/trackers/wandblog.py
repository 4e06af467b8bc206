"""What W&B's own file of a run holds, up to where a killed process left it.

The file is LevelDB's log: blocks of records with a checksum each. W&B writes whole blocks, so a
kill leaves what was told before some point, and nothing after it.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

MAGIC, HEADER, BLOCK = b":W&B\xe1\xbe\x00", struct.Struct("<IHB"), 32768
"""How a file begins, what is before each piece (checksum, length, kind), and a block's bytes."""

WHOLE, LAST = 1, 4
"""Kinds of a piece that end a record."""


def steps_in(file: Path) -> int:
    """Return the step after the last row of figures in a file; 0 where it has none."""
    end = 0
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        for item in record.history.item:
            if "_step" in (item.key, *item.nested_key):
                end = max(end, int(item.value_json) + 1)
    return end


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file that are there whole, up to the first that is not."""
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
            yield joined
            joined = b""
