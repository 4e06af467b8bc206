"""Compaction of the sequence index: new units become a segment, short segments become longer ones.

Promises: any process may do it at any time and die in it; whoever is first makes the next state,
and nobody deletes what a state that counts may name. Cost: an entry is written again about
sixteen times per level, and there is one level per factor of sixteen.
"""

from collections.abc import Sequence

from pipeline.cache.index.checks import (
    STATE_NAME,
    CompactedError,
    DamagedIndexError,
    damaged,
)
from pipeline.cache.index.entries import shard_table
from pipeline.cache.index.index import Index, NewUnit, joined_units, newest_state
from pipeline.cache.index.segments import (
    keys_of_segment,
    merge_segments,
    write_segment,
)
from pipeline.store.records import create_record
from pipeline.store.storage import Storage
from pipeline.store.sweeps import wait_for_sweep
from schemas.keys import commit_key, index_part, index_state_key, scorer_folder, stem
from schemas.records.index import IndexRun, IndexState
from schemas.records.shards import Shard

NEW_UNITS = 16
"""New units that are merged together."""

FIRST_LEVEL_ROWS = 1 << 20
"""Entries of the first level's segment at most."""

GROWTH = 16
"""How many times more the next level's segment may hold."""


def compact(
    storage: Storage,
    index: Index,
    *,
    new_units: int = NEW_UNITS,
    first_level_rows: int = FIRST_LEVEL_ROWS,
) -> bool:
    """Merge the new units of an index where there are enough; return whether they were merged.

    Args:
        storage: the store.
        index: the index; refreshed by this.
        new_units: units below which nothing is done.
        first_level_rows: entries of the first level's segment at most.
    """
    if len(index.units) < new_units:
        return False
    index.refresh()
    if len(index.units) < new_units:
        return False
    units = _committed(storage, index)  # an entry outlives its unit's chance to commit
    if len(units) < new_units:
        return False
    before = index.state
    written: set[str] = set()
    try:
        entries, shards = joined_units(list(units.values()))
        segments = push(
            storage,
            index.folder,
            before.runs,
            write_segment(storage, index.folder, entries, shard_table(shards)),
            written=written,
            first_level_rows=first_level_rows,
        )
    except CompactedError as error:
        delete_keys(storage, written)
        if newest_state(storage, index.folder) == before.number:
            what = "it is missing, or shorter than it was"
            raise damaged(storage, error.key, what) from error
        return False
    except DamagedIndexError:
        delete_keys(storage, written)
        raise
    state = IndexState(number=before.number + 1, runs=tuple(segments))
    first = storage.create(index_state_key(index.folder, state.number), state.to_bytes())
    if not first:
        delete_keys(storage, written)
        return False
    if newest_state(storage, index.folder) != state.number:
        return True  # others went on, maybe from here; what is left over, the next merge takes
    new = index_part(index.folder, "new")
    delete_keys(storage, {f"{new}/{name}" for name in units})
    delete_keys(storage, (written | keys_of_runs(before.runs)) - keys_of_runs(state.runs))
    delete_states_below(storage, index.folder, state.number)
    index.refresh()
    return True


def is_lost(storage: Storage, shard: Shard) -> bool:
    """Return whether the shard of a unit that was not committed is gone.

    Its writer may have died before it could put again what a clean-up deleted just then.
    """
    wait_for_sweep(storage, [shard.key])
    return not storage.exists(shard.key)


def _committed(storage: Storage, index: Index) -> dict[str, NewUnit]:
    """Return the new units that have a commit; one is made for those that lack it."""
    found = {}
    for name, unit in index.units.items():
        key = commit_key(scorer_folder(index.scorer), name)
        if not storage.exists(key):
            if is_lost(storage, unit.commit.shard):
                continue
            create_record(storage, key, unit.commit)
        found[name] = unit
    return found


def push(
    storage: Storage,
    folder: str,
    segments: Sequence[IndexRun | None],
    carried: IndexRun,
    *,
    written: set[str],
    first_level_rows: int = FIRST_LEVEL_ROWS,
) -> list[IndexRun | None]:
    """Return the segments of all levels with a new one among them; note what was written.

    Args:
        storage: the store.
        folder: the index's folder.
        segments: the segment of each level, or None.
        carried: a segment that was written just now.
        written: gets the keys of all objects that are written.
        first_level_rows: entries of the first level's segment at most.
    """
    written |= keys_of_segment(carried)
    levels = list(segments)
    level = 0
    while True:
        if level == len(levels):
            levels.append(None)
        older = levels[level]
        if older is not None:
            carried = merge_segments(storage, folder, older, carried)
            written |= keys_of_segment(carried) - keys_of_segment(older)
        if carried.rows <= first_level_rows * GROWTH**level:
            levels[level] = carried
            return levels
        levels[level] = None
        level += 1


def keys_of_runs(segments: Sequence[IndexRun | None]) -> set[str]:
    """Return the keys of the objects that some segments consist of."""
    return {key for segment in segments if segment is not None for key in keys_of_segment(segment)}


def delete_keys(storage: Storage, keys: set[str]) -> None:
    """Delete objects of an index."""
    for key in sorted(keys):
        storage.delete(key)


def delete_states_below(storage: Storage, folder: str, number: int) -> None:
    """Delete the states that a newer one has replaced."""
    states = index_part(folder, "states")
    for name in filter(STATE_NAME.fullmatch, storage.names(states)):
        if int(stem(name)) < number:
            storage.delete(f"{states}/{name}")
