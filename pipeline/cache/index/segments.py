"""Segments of the sequence index: sorted entries in immutable parts, a table of their shards.

Promises: memory is bounded by a few parts, whatever the length of a segment; parts have names of
their own, so that whoever writes one is the only one that may delete it. Records call a segment a
run, as stored objects do.
"""

import uuid
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.cache.index.checks import CompactedError, damaged, parse_entries
from pipeline.cache.index.entries import (
    ENTRY,
    SHARD,
    Entries,
    Keys,
    Windows,
    find,
    joined,
    unique_entries,
    windows,
)
from pipeline.store.storage import Storage
from schemas.keys import index_part
from schemas.records.index import IndexPart, IndexRun

PART_ROWS = 1 << 17
"""Entries of a part: 2 MB."""

GAP = 4096
"""Entries between two windows that are read along: 64 KB, cheaper than another request."""

BATCH = 1 << 20
"""Entries that a look-up holds at once, about: 16 MB."""

NOWHERE = np.iinfo(np.uint32).max
"""Row of an entry that was not found."""


def find_in_segment(storage: Storage, segment: IndexRun, keys: Keys) -> Entries:
    """Return the entry of each sorted key in a segment; its row is `NOWHERE` where there is none.

    Raises:
        CompactedError: the segment was replaced, or a part of it is lost.
        DamagedIndexError: entries are not in order.
    """
    found = np.zeros(len(keys), dtype=ENTRY)
    found["row"] = NOWHERE
    first = np.array([part.first for part in segment.parts], dtype="<u8")
    last = np.array([part.last for part in segment.parts], dtype="<u8")
    rows = np.array([part.rows for part in segment.parts], dtype=np.int64)
    looked = windows(keys, first, last, rows)
    asked = np.flatnonzero(looked.stop > looked.start)
    if not len(asked):
        return found
    reads, read_of_key = joined(looked.take(asked), GAP)
    batch = np.cumsum(reads.stop - reads.start) // BATCH
    for number in np.unique(batch):
        entries = _read(storage, segment, reads.take(np.flatnonzero(batch == number)))
        mine = asked[batch[read_of_key] == number]
        place = find(entries, keys[mine])
        known = place >= 0
        found[mine[known]] = entries[place[known]]
    return found


def read_table(storage: Storage, segment: IndexRun) -> Entries:
    """Return the shards that a segment's entries name, as an array of `SHARD`.

    Raises:
        CompactedError: the segment was replaced.
    """
    table = _whole(storage, segment.table, SHARD)
    if not len(table):
        raise damaged(storage, segment.table, "it names no shard")
    return table


def write_segment(storage: Storage, folder: str, entries: Entries, table: Entries) -> IndexRun:
    """Write sorted entries as a segment.

    Args:
        storage: the store.
        folder: the index's folder.
        entries: array of `ENTRY`, sorted, no key twice.
        table: the shards that they number, an array of `SHARD`.
    """
    return IndexRun(
        parts=tuple(_write_parts(storage, folder, entries)),
        table=_write(storage, index_part(folder, "tables"), table),
    )


def merge_segments(storage: Storage, folder: str, older: IndexRun, newer: IndexRun) -> IndexRun:
    """Write a segment that holds the entries of two; of equal keys the newer one's stay.

    Parts of the older segment into which no key falls are taken over as they are.

    Raises:
        CompactedError: one of the segments was replaced.
    """
    tables = read_table(storage, older), read_table(storage, newer)
    parts: list[IndexPart] = []
    starts = [0, *(part.first for part in older.parts[1:]), 1 << 64]
    source = _Slices(storage, newer)
    for part, start, stop in zip(older.parts, starts, starts[1:], strict=False):
        entries = source.between(start, stop)
        if not len(entries):
            parts.append(part)
            continue
        entries["shard"] += len(tables[0])
        both = np.concatenate([entries, read_part(storage, part)])
        parts.extend(_write_parts(storage, folder, unique_entries(both)))
    table = _write(storage, index_part(folder, "tables"), np.concatenate(tables))
    return IndexRun(parts=tuple(parts), table=table)


def keys_of_segment(segment: IndexRun) -> set[str]:
    """Return the keys of the objects that a segment consists of."""
    return {segment.table, *(part.key for part in segment.parts)}


class _Slices:
    """Entries of a segment by key, read part by part in rising order."""

    def __init__(self, storage: Storage, segment: IndexRun) -> None:
        self._storage, self._left = storage, list(segment.parts)
        self._held = np.zeros(0, dtype=ENTRY)

    def between(self, start: int, stop: int) -> Entries:
        """Return a copy of the entries with start ≤ key < stop, each at most once."""
        pieces = [self._held]
        while self._left and self._left[0].first < stop:
            pieces.append(read_part(self._storage, self._left.pop(0)))
        held = np.concatenate(pieces)
        low, high = (
            len(held) if bound >= 1 << 64 else np.searchsorted(held["key"], np.uint64(bound))
            for bound in (start, stop)
        )
        self._held = held[high:]
        return held[low:high].copy()


def _write_parts(storage: Storage, folder: str, entries: Entries) -> Iterator[IndexPart]:
    for piece in np.array_split(entries, -(-len(entries) // PART_ROWS)):
        yield IndexPart(
            key=_write(storage, index_part(folder, "parts"), piece),
            rows=len(piece),
            first=int(piece["key"][0]),
            last=int(piece["key"][-1]),
        )


def _write(storage: Storage, folder: str, array: Entries) -> str:
    key = f"{folder}/{uuid.uuid4().hex}"
    storage.put(key, array.tobytes())
    return key


def read_part(storage: Storage, part: IndexPart) -> Entries:
    """Return the entries of a part.

    Raises:
        CompactedError: it is gone.
        DamagedIndexError: it does not hold what its segment says.
    """
    entries = _whole(storage, part.key, ENTRY)
    ends = (len(entries), *(int(entries["key"][at]) for at in (0, -1) if len(entries)))
    if ends != (part.rows, part.first, part.last):
        raise damaged(storage, part.key, "it does not hold the entries that its state says")
    return entries


def _read(storage: Storage, segment: IndexRun, reads: Windows) -> Entries:
    size = ENTRY.itemsize
    bounds: Sequence[list[int]] = np.stack([reads.start * size, reads.stop * size]).T.tolist()
    ranges = [
        (segment.parts[part].key, start, stop)
        for part, (start, stop) in zip(reads.part.tolist(), bounds, strict=True)
    ]
    blocks = storage.read_ranges(ranges)
    if blocks is None:
        raise CompactedError(_culprit(storage, segment))
    return parse_entries(storage, segment.parts[0].key, b"".join(blocks), ENTRY)


def _culprit(storage: Storage, segment: IndexRun) -> str:
    """Return the key of a part that is missing or shorter than its segment says."""
    for part in segment.parts:
        version = storage.version(part.key)
        if version is None or version.num_bytes != part.rows * ENTRY.itemsize:
            return part.key
    return segment.table


def _whole(storage: Storage, key: str, kind: np.dtype) -> Entries:
    data = storage.get(key)
    if data is None:
        raise CompactedError(key)
    return parse_entries(storage, key, data, kind)
