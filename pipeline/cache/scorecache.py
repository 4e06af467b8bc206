"""The teacher cache of one scorer: scores found by token sequence, and new ones made visible.

Promises: what is returned was verified, whole digest included; a damaged shard costs only its
reuse; a shard is read once while it is held; a unit is written down in the index before it is
committed, so that a kill in between loses neither. Must not: load a teacher.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.cache.index.compaction import compact, is_lost
from pipeline.cache.index.index import Hits, Index
from pipeline.cache.index.rebuild import mended
from pipeline.cache.shardreads import HELD_BYTES, ShardReads
from pipeline.shards.scores import pinned_renumbering, read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.records import create_record, find_record
from pipeline.store.storage import Storage
from pipeline.store.sweeps import settle
from schemas.columns import list_lengths
from schemas.errors import DataError, IdentityError
from schemas.keys import commit_key, data_folder, scorer_folder
from schemas.records.scores import CacheCommit, ScorerIdentity
from schemas.records.shards import Shard
from schemas.tables import SCORES

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where the scores of a new unit come from."""

    paid_by: str
    """Run and round whose teacher pass this was."""
    teacher_tokens: int
    """Tokens that the teacher read for it."""
    reused_rows: int
    """Rows that were in the root before."""
    sibling_rows: Mapping[str, int] = field(default_factory=dict)
    """Those of them that other scorers of the same weights had, by scorer."""


class Published(NamedTuple):
    """A unit that is committed now, by this process or by one that was faster."""

    commit: CacheCommit
    scores: pa.Table
    """The rows of its shard; those of this process as they were before the codec rounded them."""


class ScoreCache:
    """The scores of one scorer in a root."""

    def __init__(
        self,
        storage: Storage,
        identity: ScorerIdentity,
        note: Callable[[str], None],
        *,
        held_bytes: int = HELD_BYTES,
        most_rows: int | None = None,
        mends: bool = True,
    ) -> None:
        """Name the cache; nothing is read yet.

        Args:
            storage: the store.
            identity: whose scores they are.
            note: told of shards that cannot be used.
            held_bytes: bytes of shards that are held for later look-ups at most.
            most_rows: rows of the shards that are read at most to spare the teacher a part of a
                unit; None for no bound.
            mends: whether an index that is found damaged is mended; else that is an error.
        """
        self._storage, self._identity, self._note = storage, identity, note
        self._mends = mends
        self._folder = scorer_folder(identity.key)
        self._index = Index(storage, identity.key)
        self._shards = ShardReads(storage, identity.key, held_bytes=held_bytes, most_rows=most_rows)
        self._looked_up: tuple[list[str], Hits] | None = None
        """The last look-up since the index changed, for one who asks twice for the same."""

    @property
    def scorer(self) -> str:
        """Key of the scorer."""
        return self._identity.key

    def unit(self, digest: str) -> CacheCommit | None:
        """Return the commit of a unit with exactly these sequences, if it was scored before.

        A unit that was killed between its index entry and its commit is committed here.

        Args:
            digest: digest of the unit's sequence digests, in order.
        """
        key = commit_key(self._folder, digest)
        commit = find_record(self._storage, key, CacheCommit)
        if commit is not None:
            return commit
        self._mended(self._index.refresh)
        self._looked_up = None
        unit = self._index.units.get(digest)
        if unit is None or is_lost(self._storage, unit.commit.shard):
            return None
        return create_record(self._storage, key, unit.commit)

    def unnamed(self, digests: Sequence[str]) -> list[str]:
        """Return the sequences that the index does not name, in order; no shard is read.

        Raises:
            DataError: an object of the index is damaged.
        """
        hits = self._lookup(digests)
        return [digests[place] for place in np.flatnonzero(hits.shard < 0).tolist()]

    def known(self, digests: Sequence[str], spared: Mapping[str, int] | None = None) -> pa.Table:
        """Return the stored scores of some distinct sequences, in any order, without the unknown.

        Args:
            digests: sequence digests, none of them twice.
            spared: tokens that the teacher would read for each of them. Shards that spare most are
                read first, and one whose read costs more than it spares is left alone. None to
                leave none alone.

        Raises:
            DataError: an object of the index is damaged.
        """
        hits = self._lookup(digests)
        asked = np.array(digests, dtype=object)
        tables = [SCORES.empty_table()]
        there = hits.shard[hits.shard >= 0]
        tokens = np.array([0 if spared is None else spared[digest] for digest in digests])
        worth = np.bincount(there, tokens[hits.shard >= 0]).astype(np.int64)
        numbers = np.unique(there)
        for number in numbers[np.argsort(-worth[numbers], kind="stable")].tolist():
            mine, shard = np.flatnonzero(hits.shard == number), hits.shards[number]
            if spared is not None and not self._shards.pays(shard, int(worth[number])):
                continue
            found = self._rows(shard, hits.row[mine])
            if found is not None:
                same = np.array(found.column("sequence_digest").to_pylist(), object) == asked[mine]
                tables.append(found.filter(pa.array(same)))
                if not same.all():
                    self._note(
                        f"the index of scorer {self.scorer[:8]} is wrong about {(~same).sum()} "
                        f"rows of {self._storage.url(shard.key)}; `opd cache reindex` mends it"
                    )
        return pa.concat_tables(tables)

    def publish(self, digest: str, table: pa.Table, origin: Origin) -> Published:
        """Store a unit's scores, index them and commit them; return what stands.

        Args:
            digest: digest of the unit's sequence digests, in order.
            table: its scores.
            origin: where they come from.
        """
        renumbering = pinned_renumbering(self._storage, self._identity, table)
        data = write_scores(table, self._identity, renumbering=renumbering)
        tokens = int(list_lengths(table, "token_logprob").sum())
        shard = content_shard(data_folder(self.scorer), data, rows=table.num_rows, tokens=tokens)
        commit = CacheCommit(
            unit=digest,
            shard=shard,
            fingerprint=self.scorer,
            attempt=uuid.uuid4().hex,
            paid_by=origin.paid_by,
            teacher_tokens=origin.teacher_tokens,
            reused_rows=origin.reused_rows,
            sibling_rows=dict(origin.sibling_rows),
        )
        digests = table.column("sequence_digest").to_pylist()
        stands = self._mended(lambda: adopt_unit(self._storage, self._index, commit, data, digests))
        self._shards.keep(shard.key, data)
        self._looked_up = None
        if stands.shard != shard:
            table = read_scores(self._storage, stands.shard, scorer=self.scorer)
        return Published(stands, table)

    def _lookup(self, digests: Sequence[str]) -> Hits:
        if self._looked_up is None or self._looked_up[0] != digests:
            hits = self._mended(lambda: self._index.lookup(digests))
            self._looked_up = list(digests), hits
        return self._looked_up[1]

    def _mended(self, action: Callable[[], T]) -> T:
        return mended(self._storage, self._index, self._note, action) if self._mends else action()

    def _rows(self, shard: Shard, rows: NDArray[np.int64]) -> pa.Table | None:
        try:
            return self._shards.rows(shard, rows)
        except (DataError, IdentityError) as error:
            self._note(f"its rows are scored again: {error}")
            return None


def adopt_unit(
    storage: Storage, index: Index, commit: CacheCommit, data: bytes, digests: Sequence[str]
) -> CacheCommit:
    """Store a unit's shard, write it down in the scorer's index, commit it; return what stands.

    Args:
        storage: the store.
        index: the scorer's index.
        commit: the unit's commit.
        data: bytes of its shard.
        digests: sequence digest of each row.
    """

    def put(key: str) -> None:
        storage.put(key, data)

    mine = commit.shard.key
    put(mine)
    commit, added = index.add(commit, digests), commit
    if commit.shard.key != mine and is_lost(storage, commit.shard):
        index.drop(commit.unit)
        commit = index.add(added, digests)
    if commit.shard.key == mine:
        settle(storage, [mine], put)
    commit = create_record(storage, commit_key(scorer_folder(index.scorer), commit.unit), commit)
    compact(storage, index)
    return commit
