"""The sequence index of a scorer: which shard and row hold the scores of a token sequence.

Layout below `cache/<scorer>/index/`: `new/<unit>`, one object per scored unit, written before the
unit's commit and holding it; `parts/` and `tables/`, the pieces of merged segments;
`states/<number>.json`, create-only, of which the highest counts. Promises: a look-up reads a
bounded number of objects, whatever the history; a kill at any moment and any number of writers
lose no entry. The index is a hint: what it names is verified before it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.cache.index.checks import (
    STATE_NAME,
    CompactedError,
    as_damage,
    check_places,
    check_state,
    check_unit,
    damaged,
    parse_entries,
)
from pipeline.cache.index.entries import (
    ENTRY,
    Entries,
    Positions,
    find,
    keys_of,
    sorted_entries,
    unique_entries,
)
from pipeline.cache.index.segments import NOWHERE, find_in_segment, read_table
from pipeline.store.commit import committed_units
from pipeline.store.records import find_record
from pipeline.store.storage import Storage
from schemas.errors import DataError, StorageError
from schemas.keys import (
    data_folder,
    index_folder,
    index_part,
    index_state_key,
    scorer_folder,
    shard_key,
    stem,
)
from schemas.records.index import IndexRun, IndexState
from schemas.records.scores import CacheCommit
from schemas.records.shards import Shard

T = TypeVar("T")

PATIENCE = 20
"""Times that a reading starts anew because the index was compacted meanwhile."""


@dataclass(frozen=True)
class Hits:
    """Where the scores of some sequences are.

    Attributes:
        shards: the shards that hold any.
        shard: int64 [n], number of the shard of each sequence, -1 where it is not known.
        row: int64 [n], its row there.
    """

    shards: list[Shard]
    shard: Positions
    row: Positions


@dataclass(frozen=True)
class NewUnit:
    """A scored unit that is not merged into a segment yet; its entries all name its own shard."""

    commit: CacheCommit
    entries: Entries

    def to_bytes(self) -> bytes:
        """Return the object that is written down of it."""
        return self.commit.to_bytes() + self.entries.tobytes()


class Index:
    """The index of one scorer, as it was at the last refresh."""

    def __init__(self, storage: Storage, scorer: str) -> None:
        """Name the scorer; the first look-up reads."""
        self._storage, self.scorer, self.folder = storage, scorer, index_folder(scorer)
        self._new = index_part(self.folder, "new")
        self.units: dict[str, NewUnit] = {}
        """Units that are not merged yet, by name."""
        self.state = IndexState(number=0, runs=())
        """The merged segments."""
        self._is_read = self._is_whole = False
        self._tables: dict[str, Entries] = {}

    def add(self, commit: CacheCommit, digests: Sequence[str]) -> CacheCommit:
        """Write down a unit that is about to be committed; return the commit of whoever was first.

        Args:
            commit: the unit's commit; its shard is stored.
            digests: sequence digest of each row of the shard.
        """
        mine = new_unit(commit, digests)
        created = self._storage.create(f"{self._new}/{commit.unit}", mine.to_bytes())
        unit = mine if created else self._read_unit(commit.unit)
        if unit is None:  # another process made it, and a third one merged and committed it
            return commit
        self.units[commit.unit] = unit
        return unit.commit

    def drop(self, unit: str) -> None:
        """Forget a unit that was written down and not committed, for its shard is gone."""
        self.units.pop(unit, None)
        self._storage.delete(f"{self._new}/{unit}")

    def refresh(self) -> None:
        """Learn what other processes did since the last time.

        Raises:
            DataError: an object of the index is damaged.
        """
        self._repeat(lambda: None)

    def lookup(self, digests: Sequence[str]) -> Hits:
        """Return where the scores of some sequences are, as of the last refresh.

        Raises:
            DataError: an object of the index is damaged.
        """
        return self._repeat(lambda: self._lookup(digests), refresh=not self._is_read)

    def _repeat(self, action: Callable[[], T], *, refresh: bool = True) -> T:
        missed = set[tuple[int, str]]()
        for _ in range(PATIENCE):
            try:
                if refresh:
                    self._refresh()
                return action()
            except CompactedError as error:
                miss = (self.state.number, error.key)
                if miss in missed:  # the newest state names it still: nobody merged meanwhile
                    what = "it is missing, or shorter than it was"
                    raise damaged(self._storage, error.key, what) from error
                missed.add(miss)
                refresh = True
        raise StorageError(
            f"{self._storage.url(self.folder)} changed {PATIENCE} times while it was read: other "
            "processes merge it without end. Run the same command again"
        )

    def _refresh(self) -> None:
        # names before the state: what is merged in between is then found twice, not missed
        names = self._storage.names(self._new)
        number = newest_state(self._storage, self.folder)
        if number != self.state.number:
            self.state, self._tables = read_state(self._storage, self.scorer, number), {}
        units = {name: self.units.get(name) or self._read_unit(name) for name in sorted(names)}
        self.units = {name: unit for name, unit in units.items() if unit is not None}
        for name in units.keys() - self.units.keys():
            raise CompactedError(f"{self._new}/{name}")
        self._is_read = True

    def _require_entries(self) -> None:
        """Make sure once that an index that was never merged names every committed unit."""
        if self._is_whole or self.state.number:
            return
        committed = committed_units(self._storage, scorer_folder(self.scorer))
        names = self._storage.names(self._new)  # after the commits: each comes after its entry
        if not committed <= names and not newest_state(self._storage, self.folder):
            raise CompactedError(self.folder)
        self._is_whole = True

    def _read_unit(self, name: str) -> NewUnit | None:
        return read_unit(self._storage, f"{self._new}/{name}")

    def _lookup(self, digests: Sequence[str]) -> Hits:
        self._require_entries()
        keys = keys_of(digests)
        order = np.argsort(keys, kind="stable")
        hits = Hits([], *(np.full(len(keys), -1, dtype=np.int64) for _ in range(2)))
        new = list(self.units.values())
        if new:
            entries, shards = joined_units(new)
            place = find(entries, keys[order])
            known = place >= 0
            hits.shards.extend(shards)
            _note(hits, order[known], entries[place[known]], 0)
        for segment in self.state.runs:
            left = order[hits.shard[order] < 0]
            if segment is None or not len(left):
                continue
            found = find_in_segment(self._storage, segment, keys[left])
            known = found["row"] != NOWHERE
            if known.any():
                self._note_segment(hits, left[known], found[known], segment)
        return hits

    def _note_segment(
        self, hits: Hits, asked: Positions, found: Entries, segment: IndexRun
    ) -> None:
        if segment.table not in self._tables:
            self._tables[segment.table] = read_table(self._storage, segment)
        check_places(self._storage, segment.parts[0].key, found, self._tables[segment.table])
        numbers, found["shard"] = np.unique(found["shard"], return_inverse=True)
        base = len(hits.shards)
        hits.shards.extend(self._shard(row) for row in self._tables[segment.table][numbers])
        _note(hits, asked, found, base)

    def _shard(self, row: np.void) -> Shard:
        digest = row["sha256"].decode()
        return Shard(
            key=shard_key(data_folder(self.scorer), digest),
            sha256=digest,
            bytes=int(row["bytes"]),
            rows=int(row["rows"]),
            tokens=int(row["tokens"]),
        )


def joined_units(units: Sequence[NewUnit]) -> tuple[Entries, list[Shard]]:
    """Return the entries of some units as one sorted array, and the shards that they number."""
    parts = [unit.entries.copy() for unit in units]
    for number, part in enumerate(parts):
        part["shard"] = number
    return unique_entries(np.concatenate(parts)), [unit.commit.shard for unit in units]


def newest_state(storage: Storage, folder: str) -> int:
    """Return the number of the state that counts, 0 before the first; foreign names do not."""
    names = storage.names(index_part(folder, "states"))
    return max((int(stem(name)) for name in names if STATE_NAME.fullmatch(name)), default=0)


def read_state(storage: Storage, scorer: str, number: int) -> IndexState:
    """Return a state of a scorer's index; number 0 is that before the first.

    Raises:
        CompactedError: it is gone.
        DamagedIndexError: it is damaged.
    """
    if not number:
        return IndexState(number=0, runs=())
    key = index_state_key(index_folder(scorer), number)
    try:
        state = find_record(storage, key, IndexState)
    except DataError as error:
        raise as_damage(storage, key, error) from error
    if state is None:
        raise CompactedError(key)
    check_state(storage, scorer, number, state)
    return state


def read_unit(storage: Storage, key: str) -> NewUnit | None:
    """Return a unit that is not merged yet, None where it is gone.

    Raises:
        DamagedIndexError: it is damaged.
    """

    def checked(data: bytes) -> NewUnit:
        head, _, body = data.partition(b"\n")
        try:
            commit = CacheCommit.from_bytes(head, where=storage.url(key))
        except DataError as error:
            raise as_damage(storage, key, error) from error
        entries = parse_entries(storage, key, body, ENTRY)
        check_unit(storage, key, commit, entries)
        return NewUnit(commit, entries)

    return storage.read_checked(key, checked)


def new_unit(commit: CacheCommit, digests: Sequence[str]) -> NewUnit:
    """Return the entry of a unit, with the sequence digest of each row of its shard."""
    return NewUnit(commit, sorted_entries(keys_of(digests), 0, np.arange(len(digests))))


def _note(hits: Hits, asked: Positions, found: Entries, base: int) -> None:
    hits.shard[asked], hits.row[asked] = found["shard"].astype(np.int64) + base, found["row"]
