"""Checks of the sequence index: what may be followed, and what must be damaged.

Promises: numbers of a stored object are bounded before memory is taken for them; what is named
here is damage, not a race with a merge.
"""

import re

import numpy as np

from pipeline.cache.index.entries import ENTRY, SHARD, Entries
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.keys import data_folder, index_folder, index_part, index_state_key
from schemas.records.index import IndexRun, IndexState
from schemas.records.scores import CacheCommit

STATE_NAME = re.compile(r"0\d{11}\.json")
"""How states are called; other names in their folder are foreign. A hundred thousand million merges
are more than there will be, and leave room for the next number."""

MOST_LEVELS = 32
"""Segments of a state: a level holds sixteen times more than the one before."""

MOST_PART_ROWS = 1 << 22
"""Entries of a part: 64 MB, far more than any opd writes."""


class DamagedIndexError(DataError):
    """An object of the index is damaged, or gone although the newest state names it."""


class CompactedError(Exception):
    """An object of the index is gone: newer ones stand in its place, or it is lost."""

    def __init__(self, key: str) -> None:
        """Name the object."""
        super().__init__(key)
        self.key = key


def damaged(storage: Storage, key: str, what: str) -> DamagedIndexError:
    """Return the error that an object of an index is damaged."""
    return DamagedIndexError(
        f"{storage.url(key)} is damaged: {what}. No score is lost: the next `opd score` with this "
        "scorer mends its index, and `opd cache reindex` makes it anew"
    )


def as_damage(storage: Storage, key: str, error: DataError) -> DataError:
    """Return what is wrong with a record of an index; one that a newer opd wrote is not damaged."""
    return error if "newer opd" in str(error) else damaged(storage, key, str(error))


def parse_entries(storage: Storage, key: str, data: bytes, kind: np.dtype) -> Entries:
    """Return the array of `ENTRY` or `SHARD` that an object holds.

    Raises:
        DamagedIndexError: it holds something else.
    """
    if len(data) % kind.itemsize:
        raise damaged(storage, key, f"{len(data)} bytes, expected a multiple of {kind.itemsize}")
    array = np.frombuffer(data, dtype=kind)
    if kind is ENTRY and not is_sorted(array):
        raise damaged(storage, key, "its entries are not in order")
    if kind is SHARD and not _are_digests(array):
        raise damaged(storage, key, "it names shards by something that is no sha256")
    return array


def is_sorted(entries: Entries) -> bool:
    """Return whether entries are sorted by key, none twice."""
    keys = entries["key"]
    return bool((keys[1:] > keys[:-1]).all())


def check_places(storage: Storage, key: str, entries: Entries, table: Entries) -> None:
    """Make sure that entries name shards of a table, and rows that these have.

    Raises:
        DamagedIndexError: they do not.
    """
    inside = entries["shard"] < len(table)
    if not inside.all() or not (entries["row"] < table["rows"][entries["shard"]]).all():
        raise damaged(storage, key, "an entry names a shard or a row that there is not")


def check_state(storage: Storage, scorer: str, number: int, state: IndexState) -> None:
    """Make sure that a state is that of its number and its scorer, with numbers that can be.

    Raises:
        DamagedIndexError: it is not.
    """
    folder = index_folder(scorer)
    key = index_state_key(folder, number)
    if state.number != number:
        raise damaged(storage, key, f"it says that it is state {state.number}")
    if len(state.runs) > MOST_LEVELS:
        raise damaged(storage, key, f"{len(state.runs)} levels, expected up to {MOST_LEVELS}")
    for segment in state.runs:
        if segment is not None and not _can_be(segment, folder):
            raise damaged(storage, key, "what it says of a segment cannot be")


def check_unit(storage: Storage, key: str, commit: CacheCommit, entries: Entries) -> None:
    """Make sure that an entry of a new unit is of its unit, its scorer and its shard.

    Raises:
        DamagedIndexError: it is not.
    """
    scorer, unit = key.split("/")[1], key.rsplit("/", 1)[1]
    if commit.unit != unit or not commit.shard.key.startswith(f"{data_folder(scorer)}/"):
        raise damaged(storage, key, "it is of another unit or another scorer")
    if entries["shard"].any() or not (entries["row"] < commit.shard.rows).all():
        raise damaged(storage, key, "it names a shard or a row that there is not")


def _can_be(segment: IndexRun, folder: str) -> bool:
    if not segment.table.startswith(f"{index_part(folder, 'tables')}/") or not segment.parts:
        return False
    before = -1
    for part in segment.parts:
        in_order = before < part.first <= part.last < 1 << 64
        mine = part.key.startswith(f"{index_part(folder, 'parts')}/")
        if not in_order or not mine or not 0 < part.rows <= MOST_PART_ROWS:
            return False
        before = part.last
    return True


def _are_digests(table: Entries) -> bool:
    letters = np.frombuffer(table["sha256"].tobytes(), dtype=np.uint8)
    digits = (letters >= ord("0")) & (letters <= ord("9"))
    return bool((digits | ((letters >= ord("a")) & (letters <= ord("f")))).all())
