"""Entries of the sequence index, sorted by key: 16 bytes each, found by interpolation. Pure.

A key is the first 64 bits of a sequence digest. Digests are uniform, so a key's place in a sorted
file is known to within a few times the square root of its length: a look-up reads one short window.
The index is a hint: whoever follows an entry compares the whole digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.records.shards import Shard

Keys = NDArray[np.uint64]

Entries = NDArray[np.void]
"""Array of `ENTRY`."""

Positions = NDArray[np.int64]

ENTRY = np.dtype([("key", "<u8"), ("shard", "<u4"), ("row", "<u4")])
"""A sequence and where its scores are: number of the shard in a table of shards, and row."""

SHARD = np.dtype([("sha256", "S64"), ("bytes", "<u8"), ("rows", "<u4"), ("tokens", "<u8")])
"""A shard in such a table."""

SPREADS = 6.0
"""Half-width of a window in standard deviations of a key's place."""


@dataclass(frozen=True)
class Windows:
    """Where to look for sorted keys: entries `start` to `stop` of the part `part`, for each key."""

    part: Positions
    start: Positions
    stop: Positions

    def take(self, chosen: Positions) -> "Windows":
        """Return some of the windows, in the given order."""
        return Windows(self.part[chosen], self.start[chosen], self.stop[chosen])


def keys_of(digests: Sequence[str]) -> Keys:
    """Return the keys of hexadecimal digests."""
    heads = bytes.fromhex("".join([digest[:16] for digest in digests]))
    return np.frombuffer(heads, dtype=">u8").astype("<u8")


def sorted_entries(keys: Keys, shard: int, rows: Positions) -> Entries:
    """Return the entries of one shard's rows, sorted, one for each key."""
    entries = np.empty(len(keys), dtype=ENTRY)
    entries["key"], entries["shard"], entries["row"] = keys, shard, rows
    return unique_entries(entries)


def unique_entries(entries: Entries) -> Entries:
    """Return entries sorted by key; of equal keys the first stays."""
    _, first = np.unique(entries["key"], return_index=True)
    return entries[first]


def shard_table(shards: Sequence[Shard]) -> Entries:
    """Return a table of shards as an array of `SHARD`."""
    rows = [(s.sha256.encode(), s.bytes, s.rows, s.tokens) for s in shards]
    return np.array(rows, dtype=SHARD)


def find(entries: Entries, keys: Keys) -> Positions:
    """Return the place of each key among sorted entries, -1 where it is not there."""
    if not len(entries):
        return np.full(len(keys), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(entries["key"], keys), len(entries) - 1)
    return np.where(entries["key"][place] == keys, place, -1).astype(np.int64)


def windows(keys: Keys, first: Keys, last: Keys, rows: Positions) -> Windows:
    """Return where sorted keys may be in files of sorted entries that follow one another.

    Args:
        keys: sorted keys [n].
        first: first key of each file [parts], sorted.
        last: last key of each file [parts].
        rows: entries of each file [parts].

    Returns:
        one window per key, empty where no file can hold it; of uniform keys, one in 10⁹ lies
        outside its window.
    """
    part = np.searchsorted(first, keys, side="right").astype(np.int64) - 1
    known = np.maximum(part, 0)
    low, high, count = first[known], last[known], rows[known]
    span = np.maximum((high - low).astype(np.float64), 1.0)
    share = np.minimum((np.maximum(keys, low) - low).astype(np.float64) / span, 1.0)
    spread = SPREADS * np.sqrt(share * (1.0 - share) * count) + 2.0
    middle = share * (count - 1)
    start = np.clip(np.floor(middle - spread), 0, count).astype(np.int64)
    stop = np.clip(np.ceil(middle + spread) + 1, 0, count).astype(np.int64)
    inside = (part >= 0) & (keys <= high)
    return Windows(known, np.where(inside, start, 0), np.where(inside, stop, 0))


def joined(found: Windows, gap: int) -> tuple[Windows, Positions]:
    """Return windows with close and overlapping ones made one, and the new window of each key.

    Args:
        found: windows of sorted keys, one at least and none of them empty.
        gap: entries between two windows of a file up to which they are read together.
    """
    stop = np.maximum.accumulate(found.stop + found.part * 2**32) - found.part * 2**32
    new = np.ones(len(stop), dtype=bool)
    new[1:] = (found.part[1:] != found.part[:-1]) | (found.start[1:] > stop[:-1] + gap)
    begin = np.flatnonzero(new)
    end = np.append(begin[1:], len(stop)) - 1
    return Windows(found.part[begin], found.start[begin], stop[end]), np.cumsum(new) - 1
