"""The sequences of a round with their teacher scores, read shard by shard for the learner.

Promises: every shard is verified, aligned with its rollout by sequence digest and of the expected
scorer; at most `keep` shards are held. Shapes: T tokens, K top-k.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.scores.columns import scores_of
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from schemas.columns import flat_values, list_lengths
from schemas.errors import DataError, IdentityError
from schemas.ragged import token_index
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some sequences, their response tokens joined in order.

    Attributes:
        rows: prompt and response ids of each sequence.
        prompt_tokens: int64 [rows].
        response_tokens: int64 [rows].
        tokens: per-token arrays [T]: `token_ids`, `token_logprob`, `tail`, `weight` (0 where a
            token is not trained), `rollout_logprob`; and `topk_ids`, `topk_logprobs` [T, K].
    """

    rows: list[NDArray[np.int32]]
    prompt_tokens: Rows
    response_tokens: Rows
    tokens: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Unit:
    prompt_ids: NDArray[np.int32]
    prompt_tokens: Rows
    response_tokens: Rows
    tokens: dict[str, NDArray[Any]]


class RoundData:
    """Rows of a round, numbered through its units in the order of the rollout manifest."""

    def __init__(
        self,
        storage: Storage,
        rollout: RolloutManifest,
        scores: dict[str, ScoreManifest],
        *,
        oldest_round: int,
        keep: int,
    ) -> None:
        """Read the lengths of all rows; the scores are read when a batch needs them.

        Args:
            storage: the store.
            rollout: the sampled shards.
            scores: score manifest of each teacher.
            oldest_round: rows sampled before it are stale and are not trained.
            keep: units held in memory.
        """
        self._storage, self._rollout, self._scores = storage, rollout, scores
        self._keep: int = keep
        self._held: OrderedDict[int, _Unit] = OrderedDict()
        lengths = [self._lengths(u.shard, oldest_round) for u in rollout.units]
        self.unit_rows: Rows = np.array([len(part[0]) for part in lengths], dtype=np.int64)
        self.total_tokens, self.trained_tokens, fresh = (
            np.concatenate([part[i] for part in lengths]) for i in range(3)
        )
        self.fresh: NDArray[np.bool_] = fresh.astype(bool)
        """Rows that are not stale."""

    def _lengths(self, shard: Any, oldest_round: int) -> tuple[Rows, Rows, Rows]:
        table = read_rollout(self._storage, shard)
        _check_policy(self._storage.url(shard.key), table, self._rollout)
        responses = list_lengths(table, "response_ids")
        row = np.repeat(np.arange(len(responses)), responses)
        mask = flat_values(table, "response_mask").astype(np.int64)
        trained = np.bincount(row, weights=mask, minlength=len(responses)).astype(np.int64)
        fresh = table.column("round").to_numpy() >= oldest_round
        return list_lengths(table, "prompt_ids") + responses, trained, fresh.astype(np.int64)

    def batch(self, rows: Rows) -> Batch:
        """Return the sequences of some rows, grouped by unit."""
        ends = np.cumsum(self.unit_rows)
        units = np.searchsorted(ends, rows, side="right")
        parts = []
        for index in np.unique(units).tolist():
            local = rows[units == index] - (ends[index] - self.unit_rows[index])
            parts.append(_take(self._unit(index), local))
        return _join(parts)

    def _unit(self, index: int) -> _Unit:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        self._held[index] = unit = self._load(index)
        while len(self._held) > self._keep:
            self._held.popitem(last=False)
        return unit

    def _load(self, index: int) -> _Unit:
        shard = self._rollout.units[index].shard
        table = read_rollout(self._storage, shard)
        responses = list_lengths(table, "response_ids")
        row_weight = table.column("weight").to_numpy().astype(np.float32)
        mask = flat_values(table, "response_mask").astype(np.float32)
        return _Unit(
            prompt_ids=flat_values(table, "prompt_ids"),
            prompt_tokens=list_lengths(table, "prompt_ids"),
            response_tokens=responses,
            tokens={
                "token_ids": flat_values(table, "response_ids"),
                "weight": np.repeat(row_weight, responses) * mask,
                "rollout_logprob": flat_values(table, "rollout_student_logprobs"),
                **self._scores_of(index, table, responses),
            },
        )

    def _scores_of(self, index: int, table: pa.Table, responses: Rows) -> dict[str, Any]:
        """Return the scores of a unit's tokens, each row by its own teacher."""
        parts, places = [], []
        teachers = table.column("teacher")
        for name, manifest in self._scores.items():
            rows = np.flatnonzero(pc.equal(teachers, name).to_numpy())
            if not len(rows):
                continue
            unit = manifest.units[index]
            scores = read_scores(self._storage, unit.shard, scorer=manifest.scorer)
            where = self._storage.url(unit.shard.key)
            _check_aligned(where, scores, table.take(pa.array(rows)))
            parts.append(_score_arrays(scores))
            places.append(token_index(responses, rows))
        covered = sum(len(place) for place in places)
        if covered != responses.sum():
            raise DataError(
                f"unit {self._rollout.units[index].unit}: {responses.sum() - covered} tokens have "
                "no teacher's scores: run `opd score` for every teacher of the configuration"
            )
        back = np.argsort(np.concatenate(places), kind="stable")
        return {name: values[back] for name, values in _stacked(parts).items()}


def _score_arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return what the losses read of a score table; buckets of the tail become one."""
    scores = scores_of(table)
    tail = scores.tail
    return {
        "token_logprob": scores.token_logprob,
        "tail": tail if tail.ndim == 1 else np.logaddexp.reduce(tail, axis=1),
        "topk_ids": scores.topk_ids,
        "topk_logprobs": scores.topk_logprobs,
    }


def _stacked(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return arrays joined by name; top-k arrays are padded to the widest."""
    width = max(part["topk_ids"].shape[1] for part in parts)
    fills = {"topk_ids": -1, "topk_logprobs": -np.inf}
    for name, fill in fills.items():
        for part in parts:
            missing = width - part[name].shape[1]
            if missing:
                part[name] = np.pad(part[name], ((0, 0), (0, missing)), constant_values=fill)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _take(unit: _Unit, rows: Rows) -> Batch:
    tokens = token_index(unit.response_tokens, rows)
    prompts = unit.prompt_ids[token_index(unit.prompt_tokens, rows)]
    prompt_tokens, response_tokens = unit.prompt_tokens[rows], unit.response_tokens[rows]
    taken = {name: values[tokens] for name, values in unit.tokens.items()}
    heads = np.split(prompts, np.cumsum(prompt_tokens)[:-1])
    tails = np.split(taken["token_ids"], np.cumsum(response_tokens)[:-1])
    joined = [np.concatenate(pair) for pair in zip(heads, tails, strict=True)]
    return Batch(joined, prompt_tokens, response_tokens, taken)


def _join(parts: list[Batch]) -> Batch:
    return Batch(
        rows=[row for part in parts for row in part.rows],
        prompt_tokens=np.concatenate([p.prompt_tokens for p in parts]),
        response_tokens=np.concatenate([p.response_tokens for p in parts]),
        tokens=_stacked([part.tokens for part in parts]),
    )


def _check_policy(where: str, table: pa.Table, rollout: RolloutManifest) -> None:
    """Refuse rows of this round by another policy, and rows of rounds to come."""
    rounds = table.column("round")
    own = table.filter(pc.equal(rounds, rollout.round)).column("policy_version")
    foreign = [p for p in pc.unique(own).to_pylist() if p != rollout.policy_version]
    newest = pc.max(rounds).as_py()
    if foreign or (newest is not None and newest > rollout.round):
        found = f"policy {foreign[0]}" if foreign else f"round {newest}"
        raise IdentityError(
            f"{where} was sampled by {found}, but its manifest says round {rollout.round} by "
            f"policy {rollout.policy_version}: the shard belongs to another round or run"
        )


def _check_aligned(where: str, scores: pa.Table, rows: pa.Table) -> None:
    ours, theirs = rows.column("sequence_digest"), scores.column("sequence_digest")
    if ours.to_pylist() != theirs.to_pylist():
        raise DataError(
            f"{where} does not score the sequences of its rollout shard, row by row: it belongs to "
            "another unit. `opd score --only-invalid` makes it anew"
        )
    if not np.array_equal(
        list_lengths(scores, "token_logprob"), list_lengths(rows, "response_ids")
    ):
        raise DataError(f"{where} has another number of scored tokens than the responses have")
