"""A damaged sequence index is named, set aside and mended, and no row is lost."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.cache.index.checks import DamagedIndexError
from pipeline.cache.index.compaction import compact
from pipeline.cache.index.entries import ENTRY, SHARD
from pipeline.cache.index.index import Index
from pipeline.cache.index.rebuild import rebuild
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.store.storage import Storage
from schemas.fingerprint import fingerprint
from schemas.keys import commit_key
from tests.support.forged import forged
from tests.support.tinytables import make_scorer, rollout_table, score_rows

SCORER = make_scorer()
INDEX = f"{SCORER.folder}/index"
TABLES = [rollout_table(3, seed=seed) for seed in range(5)]
DIGESTS = [table.column("sequence_digest").to_pylist() for table in TABLES]
ALL = [digest for some in DIGESTS for digest in some]
Change = Callable[[bytes], bytes | None]


def fill(storage: Storage) -> None:
    """Store five units, of which three are merged."""
    for number, table in enumerate(TABLES):
        cache = ScoreCache(storage, SCORER.identity, print)
        unit = fingerprint(DIGESTS[number])
        cache.publish(unit, score_rows(table, seed=number), Origin("demo/0000", 1, 0))
        if number == 2:
            index = Index(storage, SCORER.key)
            index.refresh()
            assert compact(storage, index, new_units=3)


def first_key(storage: Storage, folder: str) -> str:
    return f"{INDEX}/{folder}/{min(storage.names(f'{INDEX}/{folder}'))}"


def flipped(at: int) -> Change:
    def change(data: bytes) -> bytes:
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at:][1:]

    return change


def swapped(data: bytes) -> bytes:
    return np.frombuffer(data, ENTRY)[::-1].tobytes()


def far_rows(data: bytes) -> bytes:
    entries = np.frombuffer(data, ENTRY).copy()
    entries["row"] = 1000
    return entries.tobytes()


def doubled(data: bytes) -> bytes:
    return np.repeat(np.frombuffer(data, ENTRY), 2).tobytes()


def no_digests(data: bytes) -> bytes:
    table = np.frombuffer(data, SHARD).copy()
    table["sha256"] = b"\xff" * 64
    return table.tobytes()


def state_with(**changes: object) -> Change:
    return lambda data: forged({**json.loads(data), **changes})


def part_with(**changes: object) -> Change:
    def change(data: bytes) -> bytes:
        state = json.loads(data)
        state["runs"][0]["parts"][0].update(changes)
        return forged(state)

    return change


def unit_of_another_scorer(data: bytes) -> bytes:
    head, _, entries = data.partition(b"\n")
    text = head.decode().replace(f"cache/{SCORER.key}", f"cache/{'0' * len(SCORER.key)}")
    return forged(json.loads(text)) + entries


UNSEEN = {("new", "missing"), ("new", "cut by an entry"), ("states", "missing")}
"""An index with fewer entries looks sound: rows are scored again, until it is made anew."""

DAMAGE: list[tuple[str, str, Change]] = [
    (folder, how, change)
    for folder in ("new", "states", "parts", "tables")
    for how, change in {
        "missing": lambda _: None,
        "empty": lambda _: b"",
        "cut": lambda data: data[:-3],
        "cut by an entry": lambda data: data[: -(SHARD.itemsize if len(data) > 1000 else 16)],
    }.items()
    if (folder, how) not in UNSEEN
]
DAMAGE += [
    ("new", "another scorer's", unit_of_another_scorer),
    ("new", "no record", flipped(0)),
    ("new", "rows that there are not", lambda d: d[:-1] + b"\x7f"),
    ("parts", "not in order", swapped),
    ("parts", "rows that there are not", far_rows),
    ("parts", "each entry twice", doubled),
    ("tables", "no digests", no_digests),
    ("states", "another number", state_with(number=7)),
    ("states", "a number without end", state_with(number=10**400)),
    ("states", "too many levels", state_with(runs=[None] * 100_000)),
    ("states", "a part of 10^18 rows", part_with(rows=10**18)),
    ("states", "a part of -1 rows", part_with(rows=-1)),
    ("states", "a key of 400 digits", part_with(last=10**400)),
    ("states", "another scorer's part", part_with(key="cache/other/index/parts/x")),
    ("states", "a table elsewhere", part_with(first=1 << 64)),
]


@pytest.mark.parametrize(
    ("folder", "how", "change"), DAMAGE, ids=[f"{folder}: {how}" for folder, how, _ in DAMAGE]
)
def test_a_damaged_index_is_mended_and_every_row_is_found(
    folder: str, how: str, change: Change, memory: Storage
) -> None:
    fill(memory)
    key = first_key(memory, folder)
    before = memory.get(key)
    assert before is not None
    after = change(before)
    memory.delete(key)
    if after is not None:
        memory.put(key, after)
    notes: list[str] = []
    other = ScoreCache(memory, SCORER.identity, notes.append, mends=False)
    with pytest.raises(DamagedIndexError, match=key.rsplit("/", 1)[1]):
        other.known(ALL)
    cache = ScoreCache(memory, SCORER.identity, notes.append)
    assert cache.known(ALL).num_rows == len(ALL)
    assert key in notes[0]
    assert other.known(ALL).num_rows == len(ALL)
    aside = memory.names(f"{INDEX}/damaged")
    if after is not None:
        assert after in [memory.get(f"{INDEX}/damaged/{name}") for name in aside]
    assert ScoreCache(memory, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL)
    assert len(notes) == 1 + (after is not None)


def test_names_that_are_not_ours_in_an_index_change_nothing(memory: Storage) -> None:
    fill(memory)
    for name in ("readme.txt", "1.json", ".json", "9" * 12 + ".json", "99999999999999999999.json"):
        memory.put(f"{INDEX}/states/{name}", b"?")
    memory.put(f"{INDEX}/parts/readme.txt", b"?")
    index = Index(memory, SCORER.key)
    assert (index.lookup(ALL).shard >= 0).all()
    assert compact(memory, index, new_units=1)
    done = rebuild(memory, index, anew=True)
    assert len(done.faults) == len(done.aside) == 5
    assert memory.names(f"{INDEX}/states") == {"000000000003.json"}


def test_wrong_entries_that_look_right_are_found_by_making_the_index_anew(memory: Storage) -> None:
    fill(memory)
    notes: list[str] = []
    key = first_key(memory, "new")
    data = memory.get(key) or b""
    memory.put(key, data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    assert ScoreCache(memory, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL) - 1
    assert "wrong about 1 rows" in notes[0]
    done = rebuild(memory, Index(memory, SCORER.key), anew=True)
    assert (list(done.aside), done.units, done.rows) == ([key], 5, 15)
    assert ScoreCache(memory, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL)


def test_a_rebuild_commits_what_a_killed_process_wrote_down(memory: Storage) -> None:
    fill(memory)
    unit = min(memory.names(f"{INDEX}/new"))
    memory.delete(commit_key(SCORER.folder, unit))
    rebuild(memory, Index(memory, SCORER.key), anew=True)
    assert memory.exists(commit_key(SCORER.folder, unit))
    assert ScoreCache(memory, SCORER.identity, print).known(ALL).num_rows == len(ALL)


def test_a_mending_on_the_way_reads_no_more_shards_than_its_bound(memory: Storage) -> None:
    fill(memory)
    memory.put(first_key(memory, "states"), b"")
    sizes = sorted(
        len(memory.get(f"{SCORER.folder}/data/{name}") or b"")
        for name in memory.names(f"{SCORER.folder}/data")
    )
    done = rebuild(memory, Index(memory, SCORER.key), most_bytes=2 * sizes[-1])
    assert (done.units, done.left) == (2, 1)
    done = rebuild(memory, Index(memory, SCORER.key))
    assert (done.units, done.left) == (1, 0)
    assert ScoreCache(memory, SCORER.identity, print).known(ALL).num_rows == len(ALL)


def test_a_damaged_shard_is_left_out_and_named(memory: Storage) -> None:
    fill(memory)
    key = f"{SCORER.folder}/data/{min(memory.names(f'{SCORER.folder}/data'))}"
    memory.put(key, b"?")
    done = rebuild(memory, Index(memory, SCORER.key), anew=True)
    assert (done.left_out, done.units) == ([key], 4)


def test_an_index_made_anew_finds_what_a_deleted_entry_held(memory: Storage) -> None:
    fill(memory)
    memory.delete(first_key(memory, "new"))
    assert ScoreCache(memory, SCORER.identity, print).known(ALL).num_rows < len(ALL)
    done = rebuild(memory, Index(memory, SCORER.key), anew=True)
    assert (done.faults, done.rows) == ({}, len(ALL))
    assert ScoreCache(memory, SCORER.identity, print).known(ALL).num_rows == len(ALL)


@pytest.mark.parametrize("folders", [("states",), ("new", "states", "parts", "tables")], ids=repr)
def test_an_index_whose_folders_were_deleted_is_mended(
    folders: tuple[str, ...], memory: Storage
) -> None:
    fill(memory)
    for folder in folders:
        for name in memory.names(f"{INDEX}/{folder}"):
            memory.delete(f"{INDEX}/{folder}/{name}")
    notes: list[str] = []
    assert ScoreCache(memory, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL)
    assert len(notes) == 1 and f"{INDEX} is damaged" in notes[0]
    assert ScoreCache(memory, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL)
    assert len(notes) == 1


@pytest.mark.parametrize("left", [0, 16, 100])
def test_a_part_that_is_too_short_is_no_fault_of_the_store(left: int, storage: Storage) -> None:
    fill(storage)
    key = first_key(storage, "parts")
    storage.put(key, (storage.get(key) or b"")[:left])
    notes: list[str] = []
    assert ScoreCache(storage, SCORER.identity, notes.append).known(ALL).num_rows == len(ALL)
    assert f"{key} is damaged: it is missing, or shorter than it was" in notes[0]
