"""Compaction of the sequence index: new units become a segment, short segments become longer ones.

Promises: any process may do it at any time and die in it; whoever is first makes the next state,
and nobody deletes what a state that counts may name. Cost: an entry is written again about
sixteen times per level, and there is one level per factor of sixteen.
"""

from collections.abc import Mapping

from pipeline.cache.index.entries import shard_table
from pipeline.cache.index.index import Index, NewUnit, joined_units, newest_state
from pipeline.cache.index.segments import (
    CompactedError,
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
        segments = _merged(storage, index, units, written, first_level_rows=first_level_rows)
    except CompactedError:
        _delete(storage, written)
        return False
    state = IndexState(number=before.number + 1, runs=tuple(segments))
    first = storage.create(index_state_key(index.folder, state.number), state.to_bytes())
    if not first:
        _delete(storage, written)
        return False
    if newest_state(storage, index.folder) != state.number:
        return True  # others went on, maybe from here; what is left over, the next merge takes
    new = index_part(index.folder, "new")
    _delete(storage, {f"{new}/{name}" for name in units})
    _delete(storage, (written | _keys(before.runs)) - _keys(state.runs))
    _delete_states_below(storage, index.folder, state.number)
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


def _merged(
    storage: Storage,
    index: Index,
    units: Mapping[str, NewUnit],
    written: set[str],
    *,
    first_level_rows: int,
) -> list[IndexRun | None]:
    """Return the segments of all levels with new units among them; note what was written."""
    entries, shards = joined_units(list(units.values()))
    carried = write_segment(storage, index.folder, entries, shard_table(shards))
    written |= keys_of_segment(carried)
    segments = list(index.state.runs)
    level = 0
    while True:
        if level == len(segments):
            segments.append(None)
        older = segments[level]
        if older is not None:
            carried = merge_segments(storage, index.folder, older, carried)
            written |= keys_of_segment(carried) - keys_of_segment(older)
        if carried.rows <= first_level_rows * GROWTH**level:
            segments[level] = carried
            return segments
        segments[level] = None
        level += 1


def _keys(segments: tuple[IndexRun | None, ...]) -> set[str]:
    return {key for segment in segments if segment is not None for key in keys_of_segment(segment)}


def _delete(storage: Storage, keys: set[str]) -> None:
    for key in sorted(keys):
        storage.delete(key)


def _delete_states_below(storage: Storage, folder: str, number: int) -> None:
    states = index_part(folder, "states")
    for name in storage.names(states):
        if int(stem(name)) < number:
            storage.delete(f"{states}/{name}")
