"""Look-up windows over sorted keys against a plain search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.index.entries import (
    ENTRY,
    find,
    joined,
    keys_of,
    shard_table,
    sorted_entries,
    unique_entries,
    windows,
)
from schemas.records.shards import Shard


def uniform_keys(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def test_a_key_is_the_first_64_bits_of_a_digest() -> None:
    assert keys_of(["00000000000000ff" + "ab" * 8, "f" * 32]).tolist() == [255, 2**64 - 1]
    assert keys_of([]).tolist() == []


@given(st.integers(1, 20_000), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 300))
def test_windows_hold_every_key_that_is_there_and_are_short(
    count: int, parts: int, seed: int, gap: int
) -> None:
    stored = np.unique(uniform_keys(count, seed))
    files = [piece for piece in np.array_split(stored, min(parts, len(stored))) if len(piece)]
    first, last = (np.array([f[end] for f in files], dtype=np.uint64) for end in (0, -1))
    rows = np.array([len(f) for f in files])
    asked = np.unique(np.concatenate([stored[:: max(1, count // 97)], uniform_keys(50, seed + 1)]))
    looked = windows(asked, first, last, rows)
    there = np.isin(asked, stored)
    found = [
        key in files[part][start:stop]
        for key, part, start, stop in zip(
            asked, looked.part, looked.start, looked.stop, strict=True
        )
    ]
    assert found == there.tolist()
    assert (looked.stop - looked.start <= 6 * np.sqrt(count) + 8).all()

    some = looked.take(np.flatnonzero(looked.stop > looked.start))
    reads, of_key = joined(some, gap)
    assert (reads.part[of_key] == some.part).all()
    assert (reads.start[of_key] <= some.start).all()
    assert (reads.stop[of_key] >= some.stop).all()
    same_file = reads.part[1:] == reads.part[:-1]
    assert (reads.start[1:][same_file] > reads.stop[:-1][same_file] + gap).all()


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 50)))
def test_find_is_a_search(stored: list[int], asked: list[int]) -> None:
    keys = np.array(stored, dtype="<u8")
    entries = sorted_entries(keys, 3, np.arange(len(stored)))
    assert entries["key"].tolist() == sorted(set(stored))
    assert all(stored.index(e["key"]) == e["row"] for e in entries)
    place = find(entries, np.array(asked, dtype="<u8"))
    assert [p >= 0 for p in place] == [key in stored for key in asked]
    assert all(entries["key"][p] == key for p, key in zip(place, asked, strict=True) if p >= 0)


def test_of_equal_keys_the_first_stays() -> None:
    entries = np.array([(5, 1, 0), (2, 1, 1), (5, 9, 9)], dtype=ENTRY)
    assert unique_entries(entries).tolist() == [(2, 1, 1), (5, 1, 0)]


@pytest.mark.parametrize("rows", [0, 2**32 - 1])
def test_a_table_of_shards_holds_their_figures(rows: int) -> None:
    shard = Shard(key="k", sha256="ab" * 32, bytes=2**40, rows=rows, tokens=2**41)
    (row,) = shard_table([shard])
    assert row.tolist() == (b"ab" * 32, 2**40, rows, 2**41)
