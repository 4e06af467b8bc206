"""What is sound and what is damaged in a sequence index, from reading all of it.

Promises: nothing is changed; memory for a few parts at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pipeline.cache.index.checks import (
    STATE_NAME,
    CompactedError,
    DamagedIndexError,
    check_places,
)
from pipeline.cache.index.index import NewUnit, newest_state, read_state, read_unit
from pipeline.cache.index.segments import read_part, read_table
from pipeline.store.storage import Storage
from schemas.keys import data_folder, index_folder, index_part, index_state_key, shard_key
from schemas.records.index import IndexRun, IndexState

T = TypeVar("T")


@dataclass
class Found:
    """What an index holds."""

    new: str
    """Folder of the units that are not merged yet."""
    next_number: int
    """Number of a state that would take the place of all that are there."""
    units: dict[str, NewUnit] = field(default_factory=dict)
    """Units that are not merged yet, by name, those that can be read."""
    segments: list[IndexRun | None] = field(default_factory=list)
    """The sound segments of the newest state, by level."""
    shards: set[str] = field(default_factory=set)
    """Keys of the shards that the above name."""
    faults: dict[str, str] = field(default_factory=dict)
    """What is damaged, foreign or missing: key → reason."""


def inspect(storage: Storage, scorer: str) -> Found:
    """Return what a scorer's index holds, every object of it read.

    Raises:
        CompactedError: it was merged meanwhile.
    """
    folder = index_folder(scorer)
    number = newest_state(storage, folder)
    found = Found(index_part(folder, "new"), number + 1)
    _inspect_names(storage, folder, found)
    _inspect_units(storage, found)
    state = _state(storage, scorer, number, found)
    for segment in state.runs:
        found.segments.append(_sound(storage, scorer, segment, found))
    if newest_state(storage, folder) != number:
        raise CompactedError(index_state_key(folder, number))
    return found


def _inspect_names(storage: Storage, folder: str, found: Found) -> None:
    states = index_part(folder, "states")
    for name in storage.names(states):
        if not STATE_NAME.fullmatch(name):
            found.faults[f"{states}/{name}"] = "no state is called so"


def _inspect_units(storage: Storage, found: Found) -> None:
    for name in sorted(storage.names(found.new)):
        key = f"{found.new}/{name}"
        try:
            unit = read_unit(storage, key)
        except DamagedIndexError as error:
            found.faults[key] = str(error)
            continue
        if unit is not None:
            found.units[name] = unit
            found.shards.add(unit.commit.shard.key)


def _state(storage: Storage, scorer: str, number: int, found: Found) -> IndexState:
    try:
        return read_state(storage, scorer, number)
    except DamagedIndexError as error:
        found.faults[index_state_key(index_folder(scorer), number)] = str(error)
        return IndexState(number=0, runs=())


def _sound(
    storage: Storage, scorer: str, segment: IndexRun | None, found: Found
) -> IndexRun | None:
    """Return a segment where all of it is sound; note what is not."""
    if segment is None:
        return None
    faults = dict[str, str]()
    table = _tried(lambda: read_table(storage, segment), segment.table, faults)
    for part in segment.parts:
        entries = _tried(partial(read_part, storage, part), part.key, faults)
        if entries is not None and table is not None:
            _tried(partial(check_places, storage, part.key, entries, table), part.key, faults)
    found.faults |= faults
    if faults or table is None:
        return None
    folder = data_folder(scorer)
    found.shards |= {shard_key(folder, one.decode()) for one in table["sha256"].tolist()}
    return segment


def _tried(action: Callable[[], T], key: str, faults: dict[str, str]) -> T | None:
    """Return what an action returns; note what is wrong with the object that it reads."""
    try:
        return action()
    except CompactedError:
        faults[key] = "it is missing"
    except DamagedIndexError as error:
        faults[key] = str(error)
    return None
