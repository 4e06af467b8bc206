"""The sequences of a round with their teacher scores, read shard by shard for the learner.

Promises: every shard is verified, aligned with its rollout by sequence digest and of the expected
scorer; at most `keep` units are held, and `keep` rollouts that wait for their scores. Used by one
thread at a time, which may have other threads read ahead for it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.learner.feed.advantages import Advantages, RewardInputs, read_advantages
from pipeline.learner.feed.coming import Coming, result_of
from pipeline.learner.feed.gates import GATE_COLUMNS, GateInputs, Gates
from pipeline.learner.feed.normalisers import with_log_z
from pipeline.learner.feed.scored import check_policy, labels, teacher_columns
from pipeline.learner.sequences import (
    Batch,
    Lengths,
    Rows,
    Share,
    TeacherColumns,
    join_batches,
    join_teachers,
)
from pipeline.shards.rollouts import OWN_SAMPLE, read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from schemas.columns import Floats, flat_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import row_sums, token_index
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest
from schemas.scoresignal import SampleOf

LENGTH_COLUMNS = ("prompt_ids", "response_mask", "round", "policy_version")
"""Columns that lengths, age and policy of rows are read from."""

ROW_COLUMNS = (
    *("prompt_ids", "response_ids", "response_mask", "rollout_student_logprobs"),
    *("weight", "teacher", "sequence_digest", "finish_reason"),
)
"""Columns that rows are trained from."""

READERS = 2
"""Units that are read ahead at once: one may come over the network while another is decoded."""


class RoundData:
    """Rows of a round, numbered through its units in the order of the rollout manifest."""

    def __init__(
        self,
        storage: Storage,
        rollout: RolloutManifest,
        scores: dict[str, ScoreManifest],
        *,
        keep: int,
        rewards: RewardInputs | None = None,
        gate: GateInputs | None = None,
        samples: Sequence[SampleOf] = (),
        normalisers: Mapping[str, int] | None = None,
        share: Share | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            storage: the store.
            rollout: the sampled shards.
            scores: score manifest of each teacher; none where the tokens are what is learnt.
            keep: units held in memory.
            rewards: those of the rollout, where there are any; read when the first row is.
            gate: what says how much each row distils; None where all do alike.
            samples: whose threshold samples the objective can use, the better one first.
            normalisers: place of the log Z that the objective reads, by teacher; None for none.
            share: of units among the processes of a machine; None where each makes its own.
        """
        self._gate, self._normalisers = gate, normalisers
        self._rewards, self._samples = rewards, tuple(samples)
        self._storage, self._rollout, self._scores = storage, rollout, scores
        self._keep, self._share = keep, share
        self._held: OrderedDict[int, Batch] = OrderedDict()
        self._unscored: dict[int, pa.Table] = {}
        self._coming: Coming | None = None
        self._factor_R: Floats | None = None
        self._unit_rows_U: Rows = np.array([u.shard.rows for u in rollout.units], dtype=np.int64)

    def read_lengths(self, *, oldest_round: int) -> Lengths:
        """Return the lengths of all rows, from one reading of every rollout shard.

        The first `keep` of them stay, so that their rows need no second reading.

        Args:
            oldest_round: rows sampled before it are stale.

        Raises:
            DataError: a shard is missing, corrupt or misshapen.
            IdentityError: a shard was sampled by another policy or in a later round.
        """
        parts = [self._unit_lengths(index, oldest_round) for index in range(len(self._unit_rows_U))]
        *columns, gates = zip(*parts, strict=True)
        total, trained, fresh = map(np.concatenate, columns)
        gate_R = None if self._gates is None else np.concatenate(gates)
        return Lengths(self._unit_rows_U, total, trained, fresh, gate_R)

    @contextmanager
    def reading_ahead(self, order: Sequence[Rows]) -> Iterator[None]:
        """Read what batches to come need in other threads, for the length of a block.

        Args:
            order: rows of each batch that is asked for in the block.
        """
        with ThreadPoolExecutor(READERS, "opd-units") as pool:
            self._coming = Coming(pool, [np.unique(self._units(rows)) for rows in order])
            try:
                yield
            finally:
                self._coming = None
                pool.shutdown(cancel_futures=True)

    def batch(self, rows: Rows) -> Batch:
        """Return the sequences of some rows, grouped by unit."""
        ends, units = np.cumsum(self._unit_rows_U), self._units(rows)
        if self._coming is not None:
            self._read_ahead(self._coming)
        parts = []
        for index in np.unique(units).tolist():
            mine = rows[units == index]
            part = self._unit(index).take(mine - (ends[index] - self._unit_rows_U[index]))
            parts.append(part if self._factor_R is None else part.weighed(self._factor_R[mine]))
        return join_batches(parts)

    def each_unit(self, column: str) -> Iterator[tuple[pa.ChunkedArray, Batch]]:
        """Yield the rows of every unit, beside a column of its rollout.

        Raises:
            DataError: a shard is missing, corrupt or misshapen.
        """
        for index, unit in enumerate(self._rollout.units):
            table = read_rollout(self._storage, unit.shard, columns=(column,))
            yield table.column(column), self._unit(index)

    def weigh(self, factor_R: Floats) -> None:
        """Make rows distil by factors of their own, beside their gates."""
        self._factor_R = factor_R

    def _unit_lengths(
        self, index: int, oldest_round: int
    ) -> tuple[Rows, Rows, NDArray[np.bool_], Floats | None]:
        shard = self._rollout.units[index].shard
        keeps = len(self._unscored) < self._keep
        names = LENGTH_COLUMNS if self._gate is None else (*LENGTH_COLUMNS, *GATE_COLUMNS)
        table = read_rollout(self._storage, shard, columns=None if keeps else names)
        check_policy(self._storage.url(shard.key), table, self._rollout)
        if keeps:
            self._unscored[index] = self._columns_of(table)
        responses = list_lengths(table, "response_mask")
        trained = row_sums(flat_values(table, "response_mask").astype(np.int64), responses)
        fresh = table.column("round").to_numpy() >= oldest_round
        total = list_lengths(table, "prompt_ids") + responses
        return total, trained, fresh, self._weights(index, table)

    def _units(self, rows: Rows) -> Rows:
        """Return the unit of each row."""
        ends = np.cumsum(self._unit_rows_U)
        return np.asarray(np.searchsorted(ends, rows, side="right"), dtype=np.int64)

    def _read_ahead(self, coming: Coming) -> None:
        """Have the units read that are needed next, in the place of those that are not."""
        wanted = coming.next_units(self._keep)
        unwanted = [index for index in self._held if index not in wanted]
        for index in wanted:
            if index in self._held or index in coming.loading:
                continue
            if len(self._held) + len(coming.loading) >= self._keep:
                if not unwanted:
                    return
                del self._held[unwanted.pop(0)]
            coming.loading[index] = coming.pool.submit(self._load, index)

    def _unit(self, index: int) -> Batch:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        ahead = self._coming.loading.pop(index, None) if self._coming else None
        unit = self._load(index) if ahead is None else result_of(ahead)
        self._held[index] = unit
        while len(self._held) > self._keep:
            self._held.popitem(last=False)
        return unit

    def _load(self, index: int) -> Batch:
        table = self._unscored.pop(index, None)
        make = partial(self._made, index, table)
        return make() if self._share is None else self._share(index, make)

    def _made(self, index: int, table: pa.Table | None) -> Batch:
        """Return a unit from its shards; that of the rollout may be read already."""
        if table is None:
            shard = self._rollout.units[index].shard
            table = self._columns_of(read_rollout(self._storage, shard))
        responses = list_lengths(table, "response_ids")
        row_weight = table.column("weight").to_numpy().astype(np.float32)
        mask = flat_values(table, "response_mask").astype(np.float32)
        return Batch(
            prompt_ids_P=flat_values(table, "prompt_ids"),
            prompt_tokens_B=list_lengths(table, "prompt_ids"),
            response_tokens_B=responses,
            token_ids_T=flat_values(table, "response_ids"),
            weight_T=np.repeat(row_weight, responses) * mask,
            rollout_logprob_T=flat_values(table, "rollout_student_logprobs"),
            ended_B=pc.equal(table.column("finish_reason"), "stop").to_numpy(),
            teacher=self._teacher_columns(index, table, responses),
            advantage_B=self._advantage(index, table),
            gate_B=self._weights(index, table),
        )

    def _columns_of(self, table: pa.Table) -> pa.Table:
        """Return what rows are trained from."""
        own = [name for name in OWN_SAMPLE if self._samples and name in table.column_names]
        gate = () if self._gate is None else ("prompt_id",)
        return table.select([*ROW_COLUMNS, *own, *gate])

    @cached_property
    def _advantages(self) -> Advantages | None:
        return None if self._rewards is None else read_advantages(self._storage, self._rewards)

    def _advantage(self, index: int, table: pa.Table) -> Floats | None:
        if self._advantages is None:
            return None
        where = self._storage.url(self._rollout.units[index].shard.key)
        return self._advantages.of(self._first(index), table.column("sequence_digest"), where=where)

    @cached_property
    def _gates(self) -> Gates | None:
        if self._gate is None:
            return None
        return Gates(self._storage, self._gate, self._advantages)

    def _weights(self, index: int, table: pa.Table) -> Floats | None:
        return None if self._gates is None else self._gates.of(self._first(index), table)

    def _first(self, index: int) -> int:
        """Return the number of a unit's first row."""
        return int(self._unit_rows_U[:index].sum())

    def _teacher_columns(self, index: int, table: pa.Table, responses: Rows) -> TeacherColumns:
        """Return the scores of a unit's tokens, each row by its own teacher.

        Where nobody scores, the tokens themselves are what is learnt.
        """
        if not self._scores:
            return labels(flat_values(table, "response_ids"))
        parts, places = [], []
        teachers = table.column("teacher")
        for name, manifest in self._scores.items():
            rows = np.flatnonzero(pc.equal(teachers, name).to_numpy())
            if not len(rows):
                continue
            unit = manifest.units[index]
            scores = read_scores(self._storage, unit.shard, scorer=manifest.scorer)
            where = self._storage.url(unit.shard.key)
            mine = table.take(pa.array(rows))
            columns = teacher_columns(scores, mine, self._samples, where=where)
            parts.append(with_log_z(columns, scores, name, self._normalisers))
            places.append(token_index(responses, rows))
        covered = sum(len(place) for place in places)
        if covered != responses.sum():
            raise DataError(
                f"unit {self._rollout.units[index].unit}: {responses.sum() - covered} tokens have "
                "no teacher's scores: run `opd score` for every teacher of the configuration"
            )
        back = np.argsort(np.concatenate(places), kind="stable")
        return join_teachers(parts).take(back)
