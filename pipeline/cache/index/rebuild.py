"""A damaged sequence index, mended or made anew from the commits and shards of its scorer.

Promises: what is damaged is set aside, never destroyed; what is sound is kept; units that were
written down and not committed yet stay; any number of processes may mend at once, and die in it.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from pipeline.cache.index.checks import CompactedError, DamagedIndexError
from pipeline.cache.index.compaction import (
    FIRST_LEVEL_ROWS,
    delete_keys,
    delete_states_below,
    is_lost,
    keys_of_runs,
    push,
)
from pipeline.cache.index.entries import shard_table
from pipeline.cache.index.index import Index, NewUnit, joined_units, new_unit
from pipeline.cache.index.inspection import Found, inspect
from pipeline.cache.index.segments import write_segment
from pipeline.runs.progress import Progress
from pipeline.shards.parquet import read_table
from pipeline.store.commit import committed_units
from pipeline.store.records import create_record, read_records
from pipeline.store.storage import Storage
from schemas.errors import DataError, StorageError
from schemas.keys import commit_key, index_part, index_state_key, scorer_folder
from schemas.records.index import IndexState
from schemas.records.scores import CacheCommit

T = TypeVar("T")

ATTEMPTS = 5
"""Times that a rebuild starts anew because another process made the next state."""

MEND_BYTES = 1 << 30
"""Bytes of shards that a stage reads at most to mend an index on its way."""

SHARD_READERS = 4


@dataclass
class Rebuilt:
    """What a rebuild did."""

    faults: dict[str, str] = field(default_factory=dict)
    """What was damaged: key → reason."""
    aside: dict[str, str] = field(default_factory=dict)
    """Where it lies now: key → key."""
    units: int = 0
    """Units whose rows were read from their shards."""
    rows: int = 0
    left_out: list[str] = field(default_factory=list)
    """Shards whose rows are not in the index: they cannot be read."""
    left: int = 0
    """Units that were left for `opd cache reindex`, for there are too many."""


def mended(
    storage: Storage, index: Index, note: Callable[[str], None], action: Callable[[], T]
) -> T:
    """Return what an action returns, after mending the index where the action finds it damaged."""
    try:
        return action()
    except DamagedIndexError as error:
        note(f"the index of scorer {index.scorer[:8]} is mended: {error}")
    done = rebuild(storage, index, most_bytes=MEND_BYTES)
    for key, place in done.aside.items():
        note(f"{storage.url(key)} was set aside as {storage.url(place)}")
    if done.left:
        note(f"rows of {done.left} units are not found until `opd cache reindex` was run")
    return action()


def rebuild(
    storage: Storage,
    index: Index,
    *,
    anew: bool = False,
    most_bytes: int | None = None,
    progress: Progress | None = None,
) -> Rebuilt:
    """Make an index sound; return what was done.

    Args:
        storage: the store.
        index: the index; refreshed by this.
        anew: whether to read every shard, and not only those of units that are not found.
        most_bytes: bytes of shards that are read at most; None for no bound.
        progress: told of each shard.

    Raises:
        StorageError: other processes change the index without end.
    """
    done = Rebuilt()
    for _ in range(ATTEMPTS):
        try:
            is_done = _attempt(
                storage, index, done, anew=anew, most_bytes=most_bytes, progress=progress
            )
        except CompactedError:
            continue
        if is_done:
            index.refresh()
            return done
    raise StorageError(
        f"{storage.url(index.folder)} changed {ATTEMPTS} times while it was mended: other "
        "processes merge it. Run the same command again"
    )


def _attempt(
    storage: Storage,
    index: Index,
    done: Rebuilt,
    *,
    anew: bool,
    most_bytes: int | None,
    progress: Progress | None,
) -> bool:
    """Mend an index once; return False where another process made the next state."""
    found = inspect(storage, index.scorer)
    done.faults |= found.faults
    _commit_units(storage, index.scorer, found)
    known = set() if anew else found.shards
    missing = {c.shard.key: c for c in _commits(storage, index.scorer)}
    for key in known:
        missing.pop(key, None)
    chosen = _affordable(list(missing.values()), most_bytes)
    done.left, done.units, done.rows, done.left_out = len(missing) - len(chosen), 0, 0, []
    written, segments = set[str](), [] if anew else list(found.segments)
    if progress is not None:
        progress.start(f"reindex {index.scorer[:8]}", len(chosen), 0)
    try:
        for batch in _batches(_read(storage, chosen, found, done, progress)):
            entries, shards = joined_units(batch)
            carried = write_segment(storage, index.folder, entries, shard_table(shards))
            segments = push(storage, index.folder, segments, carried, written=written)
            done.units, done.rows = done.units + len(batch), done.rows + len(entries)
    finally:
        if progress is not None:
            progress.stop()
    state = IndexState(number=found.next_number, runs=tuple(segments))
    if not storage.create(index_state_key(index.folder, state.number), state.to_bytes()):
        delete_keys(storage, written)
        return False
    done.aside |= _set_aside(storage, index, done.faults)
    delete_keys(storage, (written | keys_of_runs(found.segments)) - keys_of_runs(segments))
    delete_states_below(storage, index.folder, state.number)
    return True


def _commit_units(storage: Storage, scorer: str, found: Found) -> None:
    """Commit what was written down and not committed yet, where its shard is there."""
    folder = scorer_folder(scorer)
    committed = committed_units(storage, folder)
    for name, unit in found.units.items():
        if name not in committed and not is_lost(storage, unit.commit.shard):
            create_record(storage, commit_key(folder, name), unit.commit)


def _commits(storage: Storage, scorer: str) -> list[CacheCommit]:
    folder = scorer_folder(scorer)
    keys = [commit_key(folder, unit) for unit in sorted(committed_units(storage, folder))]
    read = read_records(storage, keys, CacheCommit)
    return [commit for _, commit in read if not isinstance(commit, DataError)]


def _affordable(commits: Sequence[CacheCommit], most_bytes: int | None) -> list[CacheCommit]:
    """Return as many commits as can be read, those with the smallest shards first."""
    if most_bytes is None:
        return list(commits)
    ordered = sorted(commits, key=lambda commit: commit.shard.bytes)
    total = np.cumsum([float(commit.shard.bytes) for commit in ordered])
    return ordered[: int((total <= most_bytes).sum())]


def _read(
    storage: Storage,
    commits: Sequence[CacheCommit],
    found: Found,
    done: Rebuilt,
    progress: Progress | None,
) -> Iterator[NewUnit]:
    """Yield the entries of committed units, from their shards; compare those written down."""
    read = partial(_unit, storage)
    with ThreadPoolExecutor(SHARD_READERS) as pool:
        for start in range(0, len(commits), 16 * SHARD_READERS):
            some = commits[start : start + 16 * SHARD_READERS]
            for commit, unit in zip(some, pool.map(read, some), strict=True):
                if progress is not None:
                    progress.advance(1, tokens=commit.shard.tokens)
                if unit is None:
                    done.left_out.append(commit.shard.key)
                    continue
                yield unit
                noted = found.units.get(commit.unit)
                if noted is not None and _differs(noted, unit):
                    key = f"{found.new}/{commit.unit}"
                    done.faults[key] = "its entries are not those of its shard"


def _differs(noted: NewUnit, unit: NewUnit) -> bool:
    """Return whether two entries of a unit name the same shard and different rows."""
    same_shard = noted.commit.shard == unit.commit.shard
    return same_shard and noted.entries.tobytes() != unit.entries.tobytes()


def _unit(storage: Storage, commit: CacheCommit) -> NewUnit | None:
    """Return a unit's entries from its shard, None where `opd cache verify` would complain."""
    where = storage.url(commit.shard.key)
    try:
        data = storage.read_shard(commit.shard)
        table, _ = read_table(data, where=where, columns=["sequence_digest"])
        digests = [str(digest) for digest in table.column("sequence_digest").to_pylist()]
        unit = new_unit(commit, digests)
    except (DataError, KeyError, ValueError):
        return None
    return unit if len(digests) == commit.shard.rows else None


def _batches(units: Iterable[NewUnit]) -> Iterator[list[NewUnit]]:
    """Yield units in groups of about a first level's entries, the empty ones left out."""
    batch, rows = list[NewUnit](), 0
    for unit in units:
        if len(unit.entries):
            batch.append(unit)
            rows += len(unit.entries)
        if rows >= FIRST_LEVEL_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _set_aside(storage: Storage, index: Index, faults: dict[str, str]) -> dict[str, str]:
    """Move damaged objects out of the way; return where they lie now."""
    moved = {}
    for key in faults:
        data = storage.get(key)
        if data is not None:
            moved[key] = f"{index_part(index.folder, 'damaged')}/{uuid.uuid4().hex}"
            storage.put(moved[key], data)
            storage.delete(key)
    return moved
