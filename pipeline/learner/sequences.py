"""Sequences as the learner trains on them: ids, and columns of their response tokens. Pure.

Shapes: B sequences; P prompt tokens and T response tokens, those of all sequences end to end;
K top-k; R rows of a round, in the order of its rollout manifest; U its units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Floats, Ids
from schemas.ragged import token_index
from schemas.scoresignal import SampleOf

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lengths:
    """How long the rows of a round are, and which of them may be trained."""

    unit_rows_U: Rows
    total_tokens_R: Rows
    """Prompt and response."""
    trained_tokens_R: Rows
    """Of the student's own."""
    fresh_R: NDArray[np.bool_]
    """False where the sampling policy lags too much."""
    gate_R: Floats | None = None
    """Weight of each row's distillation; None where all are 1."""

    @property
    def usable_R(self) -> NDArray[np.bool_]:
        """Return which rows are trained: neither stale nor without a token of the student's own."""
        return self.fresh_R & (self.trained_tokens_R > 0)

    @property
    def gated(self) -> dict[str, int]:
        """Return how many trained rows distil whole, in part or not; nothing without gates."""
        if self.gate_R is None:
            return {}
        weight_R = self.gate_R[self.usable_R]
        whole, none = int((weight_R == 1).sum()), int((weight_R == 0).sum())
        return {"whole": whole, "part": len(weight_R) - whole - none, "none": none}

    def gate_words(self) -> list[str]:
        """Return what people are told of that, nothing without gates."""
        counts = [f"{count:,} {name}" for name, count in self.gated.items()]
        return [f"loss.gate: rows that distil: {', '.join(counts)}"] if counts else []


@dataclass(frozen=True, eq=False)
class SampleColumns:
    """A threshold sample at each response token; log-probabilities in nats."""

    of: SampleOf
    """Whose sample it is."""
    ids_TN: Ids
    logprobs_TN: Floats
    """Under the teacher."""
    chances_TN: Floats
    """Inclusion probabilities; 0 where there is no id."""
    rollout_logprobs_TN: Floats | None = None
    """Under the policy that sampled, for a sample of the student."""

    def take(self, tokens: Rows) -> "SampleColumns":
        """Return the sample of some tokens, in their order."""
        mu_TN = self.rollout_logprobs_TN
        return SampleColumns(
            of=self.of,
            ids_TN=self.ids_TN[tokens],
            logprobs_TN=self.logprobs_TN[tokens],
            chances_TN=self.chances_TN[tokens],
            rollout_logprobs_TN=None if mu_TN is None else mu_TN[tokens],
        )


@dataclass(frozen=True, eq=False)
class TeacherColumns:
    """What a teacher says of response tokens, as the losses read it; log-probabilities in nats."""

    topk_ids_TK: Ids
    """Negative where a position keeps fewer ids than another."""
    topk_logprobs_TK: Floats
    """-inf where the id is negative."""
    tail_TB: Floats
    """Log mass outside the top-k in each bucket; -inf where there is none."""
    token_logprob_T: Floats
    """Of the token that stands there."""
    sample: SampleColumns | None = None
    """What single ids beside the top-k are known of."""
    log_z_T: Floats | None = None
    """Log-normaliser at the objective's temperature, NaN where it was not scored; None at 1."""

    @property
    def tail_T(self) -> Floats:
        """Return the log mass outside the top-k."""
        return one_bucket(self.tail_TB)[:, 0]

    def take(self, tokens: Rows) -> "TeacherColumns":
        """Return the columns of some tokens, in their order."""
        return TeacherColumns(
            topk_ids_TK=self.topk_ids_TK[tokens],
            topk_logprobs_TK=self.topk_logprobs_TK[tokens],
            tail_TB=self.tail_TB[tokens],
            token_logprob_T=self.token_logprob_T[tokens],
            sample=None if self.sample is None else self.sample.take(tokens),
            log_z_T=None if self.log_z_T is None else self.log_z_T[tokens],
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Some sequences with the columns of their response tokens. Nobody writes into its arrays."""

    prompt_ids_P: Ids
    prompt_tokens_B: Rows
    response_tokens_B: Rows
    token_ids_T: Ids
    weight_T: Floats
    """0 where a token is not trained."""
    rollout_logprob_T: Floats
    """Under the policy that sampled, nats."""
    ended_B: NDArray[np.bool_]
    """Whether the response ended by itself."""
    teacher: TeacherColumns
    advantage_B: Floats | None = None
    """Of the sequence's reward; NaN where it has none. None where nothing is graded."""
    gate_B: Floats | None = None
    """Weight of the sequence's distillation; None where all are 1."""

    def id_rows(self) -> list[Ids]:
        """Return prompt and response ids of each sequence."""
        prompts = np.split(self.prompt_ids_P, np.cumsum(self.prompt_tokens_B)[:-1])
        responses = np.split(self.token_ids_T, np.cumsum(self.response_tokens_B)[:-1])
        return [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]

    def weighed(self, factor_B: Floats) -> "Batch":
        """Return the same sequences, each with a factor of its distillation."""
        gate_B = factor_B if self.gate_B is None else self.gate_B * factor_B
        return replace(self, gate_B=gate_B)

    def take(self, rows: Rows) -> "Batch":
        """Return some sequences, in the order of `rows`."""
        tokens = token_index(self.response_tokens_B, rows)
        return Batch(
            prompt_ids_P=self.prompt_ids_P[token_index(self.prompt_tokens_B, rows)],
            prompt_tokens_B=self.prompt_tokens_B[rows],
            response_tokens_B=self.response_tokens_B[rows],
            token_ids_T=self.token_ids_T[tokens],
            weight_T=self.weight_T[tokens],
            rollout_logprob_T=self.rollout_logprob_T[tokens],
            ended_B=self.ended_B[rows],
            teacher=self.teacher.take(tokens),
            advantage_B=None if self.advantage_B is None else self.advantage_B[rows],
            gate_B=None if self.gate_B is None else self.gate_B[rows],
        )


Share = Callable[[int, Callable[[], Batch]], Batch]
"""Gives the unit of a number: as another process has made it, or made here for all of them."""


def untrained_batch() -> Batch:
    """Return the shortest sequence there is, of which nothing is trained.

    For a process that has no rows of a micro-batch: every process must take part in each.
    """
    one, zero, zeros = np.ones(1, np.int64), np.zeros(1, np.int32), np.zeros(1, np.float32)
    return Batch(
        prompt_ids_P=zero,
        prompt_tokens_B=one,
        response_tokens_B=one,
        token_ids_T=zero,
        weight_T=zeros,
        rollout_logprob_T=zeros,
        ended_B=zeros > 0,
        teacher=TeacherColumns(zero[:, None], zeros[:, None], zeros[:, None] - np.inf, zeros),
        advantage_B=zeros * np.nan,
        gate_B=zeros,
    )


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Return the sequences of some batches, one after another."""
    advantages = [part.advantage_B for part in parts if part.advantage_B is not None]
    gates = [part.gate_B for part in parts if part.gate_B is not None]
    return Batch(
        prompt_ids_P=np.concatenate([part.prompt_ids_P for part in parts]),
        prompt_tokens_B=np.concatenate([part.prompt_tokens_B for part in parts]),
        response_tokens_B=np.concatenate([part.response_tokens_B for part in parts]),
        token_ids_T=np.concatenate([part.token_ids_T for part in parts]),
        weight_T=np.concatenate([part.weight_T for part in parts]),
        rollout_logprob_T=np.concatenate([part.rollout_logprob_T for part in parts]),
        ended_B=np.concatenate([part.ended_B for part in parts]),
        teacher=join_teachers([part.teacher for part in parts]),
        advantage_B=np.concatenate(advantages) if len(advantages) == len(parts) else None,
        gate_B=np.concatenate(gates) if len(gates) == len(parts) else None,
    )


def join_teachers(parts: Sequence[TeacherColumns]) -> TeacherColumns:
    """Return columns of tokens end to end; a narrower top-k is padded to the widest.

    Buckets of the tail become one where parts have other numbers of them. There is a sample where
    all parts have one of the same side.
    """
    width = max(part.topk_ids_TK.shape[1] for part in parts)
    tails = [part.tail_TB for part in parts]
    normalisers = [part.log_z_T for part in parts if part.log_z_T is not None]
    if len({tail.shape[1] for tail in tails}) > 1:
        tails = [one_bucket(tail) for tail in tails]
    return TeacherColumns(
        topk_ids_TK=np.concatenate([_padded(p.topk_ids_TK, width, -1) for p in parts]),
        topk_logprobs_TK=np.concatenate(
            [_padded(p.topk_logprobs_TK, width, -np.inf) for p in parts]
        ),
        tail_TB=np.concatenate(tails),
        token_logprob_T=np.concatenate([part.token_logprob_T for part in parts]),
        sample=_join_samples([part.sample for part in parts]),
        log_z_T=np.concatenate(normalisers) if len(normalisers) == len(parts) else None,
    )


def one_bucket(tail_TB: Floats) -> Floats:
    """Return the log mass of all buckets as one, [T, 1]."""
    return tail_TB if tail_TB.shape[1] == 1 else np.logaddexp.reduce(tail_TB, axis=1, keepdims=True)


def _join_samples(parts: Sequence[SampleColumns | None]) -> SampleColumns | None:
    there = [part for part in parts if part is not None]
    if len(there) < len(parts) or len({part.of for part in there}) != 1:
        return None
    width = max(part.ids_TN.shape[1] for part in there)
    mu = [p.rollout_logprobs_TN for p in there if p.rollout_logprobs_TN is not None]
    return SampleColumns(
        of=there[0].of,
        ids_TN=np.concatenate([_padded(p.ids_TN, width, -1) for p in there]),
        logprobs_TN=np.concatenate([_padded(p.logprobs_TN, width, -np.inf) for p in there]),
        chances_TN=np.concatenate([_padded(p.chances_TN, width, 0.0) for p in there]),
        rollout_logprobs_TN=np.concatenate([_padded(m, width, -np.inf) for m in mu])
        if mu
        else None,
    )


def _padded(values_TK: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
    missing = width - values_TK.shape[1]
    if not missing:
        return values_TK
    return np.pad(values_TK, ((0, 0), (0, missing)), constant_values=fill)
