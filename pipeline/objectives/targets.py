"""The teacher's side of a batch: checked, normalised targets of flat token positions.

Pure: no I/O, no random numbers, no state. Shapes: T tokens (all sequences of a batch, end to end),
K top-k, S support = top-k and, without a sample, the sampled token (K + 1 columns), B tail buckets,
N ids of a sample, G ids whose logits are gathered, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.objectives.refusals import check_ids, check_logprobs, refuse, require_shapes
from pipeline.objectives.samples import Sample
from pipeline.objectives.supports import Stored, Support, topk_alone, with_token
from schemas.errors import DataError
from schemas.tables import LOGPROB_ROUNDING

_NEG_INF = -math.inf

_MASS_TOLERANCE = 0.05  # 16-bit log-probabilities move the total mass by less than this


@dataclass(frozen=True, eq=False)
class Plan:
    """What a token's loss takes from the other tokens of its response: constants, made beforehand.

    None is what no objective asks for.
    """

    advantage_T: Tensor | None = None
    """Of the policy gradient."""
    log_ratio_T: Tensor | None = None
    """Log of the importance weight."""
    weight_T: Tensor | None = None
    """Factor of the distillation loss."""
    clipped_T: Tensor | None = None
    """bool, True where the divergence is above its clip."""


@dataclass(frozen=True, eq=False)
class Tempered:
    """The teacher at another temperature, on the support and one tail bucket."""

    temperature: float
    logprobs_TS: Tensor
    tail_TB: Tensor
    token_logprob_T: Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """Teacher side of T positions, checked and normalised: made by `build_targets`.

    A padded column of the support repeats the sampled token's id, so that the set of ids in a row
    is always exactly its support.
    """

    ids_TS: Tensor
    """int64 ids of the support; distinct in a row where `valid_TS`."""
    logprobs_TS: Tensor
    """float32 teacher log-probabilities, renormalised over support and tail; -inf where padded."""
    valid_TS: Tensor
    """bool, False on padded columns."""
    tail_TB: Tensor
    """float32 teacher log-mass outside the support in each bucket; -inf where there is none."""
    token_ids_T: Tensor
    """int64 ids of the sampled tokens."""
    token_logprob_T: Tensor
    """float32 teacher log-probability of the sampled token, as scored."""
    weight_T: Tensor
    """float32 weight of each position, 0 where it is not trained."""
    tail_clamped_T: Tensor
    """bool, True where the sampled token claimed the whole stored tail or more (rounding)."""
    rollout_logprob_T: Tensor | None = None
    """float32 log-probability under the sampling policy, or None where the run has none."""
    advantage_T: Tensor | None = None
    """float32 advantage of each token's response, NaN where it has no reward; None without any."""
    sample: Sample | None = None
    """What is known of single ids outside the support; None sums over the support alone."""
    row_T: Tensor | None = None
    """int64 number of each token's response, whose tokens stand together; None where unknown."""
    by_row: bool = False
    """Whether figures of whole responses are asked for."""
    factor_T: Tensor | None = None
    """float32 factor of each token's distillation loss, of what is known beforehand; None is 1."""
    plan: Plan | None = None
    """What was seen of whole responses; None where the objective looks at single tokens."""
    gate_T: Tensor | None = None
    """float32 weight of the distillation of each token's response; None where all are 1."""
    distill: float = 1.0
    """Share of its weight that all distillation has."""
    tempered: Tempered | None = None
    """The teacher at the temperature of the objective; None where that is 1."""

    @property
    def tail_T(self) -> Tensor:
        """Return the teacher's log-mass outside the support, float32."""
        return self.tail_TB.logsumexp(-1)

    @property
    def gathered_TG(self) -> Tensor:
        """Return the ids whose logits objectives look at: support, sampled token, sample."""
        sampled = [] if self.sample is None else [self.sample.ids_TN]
        return torch.cat([self.ids_TS, self.token_ids_T[:, None], *sampled], dim=-1)

    def at(self, tempered: Tempered) -> "Targets":
        """Return the targets with the teacher at a temperature."""
        return replace(
            self,
            logprobs_TS=tempered.logprobs_TS,
            tail_TB=tempered.tail_TB,
            token_logprob_T=tempered.token_logprob_T,
            tempered=None,
        )

    def in_step(self, tokens: int, *, distill: float = 1.0) -> "Targets":
        """Return the targets as an optimizer step of so many trained tokens takes them."""
        sample = None if self.sample is None else self.sample.in_step(tokens)
        return replace(self, sample=sample, distill=distill)

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.weight_T)

    def __getitem__(self, index: slice | Tensor) -> "Targets":
        """Return the positions of a slice, or of an int64 tensor of positions."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> "Targets":
        """Return the same targets with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        return replace(self, **_changed(self, change))

    def require_rows(self, num_rows: int) -> None:
        """Raise DataError unless there are `num_rows` positions."""
        if len(self) != num_rows:
            raise DataError(f"{len(self)} target positions for {num_rows} positions of the model")


def _changed(parts: Any, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return the fields of a dataclass, their tensors changed, those of its parts too."""
    values = {field.name: getattr(parts, field.name) for field in fields(parts)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = change(value)
        elif is_dataclass(value) and not isinstance(value, type):
            values[name] = replace(value, **_changed(value, change))
    return values


def build_targets(
    topk_ids_TK: Tensor,
    topk_logprobs_TK: Tensor,
    *,
    tail_T: Tensor,
    token_ids_T: Tensor,
    token_logprob_T: Tensor,
    weight_T: Tensor,
    rollout_logprob_T: Tensor | None = None,
    advantage_T: Tensor | None = None,
    gate_T: Tensor | None = None,
    sample: Sample | None = None,
    vocab_size: int,
) -> Targets:
    """Return checked targets whose support is the teacher's top-k, and all that is known beside it.

    Without a sample the sampled token is of the support, and its mass leaves the tail. With one it
    is not: a support that depends on what was drawn is biased. P is renormalised over support and
    tail, and the tail is dropped where the support is the whole vocabulary. Positions of weight 0
    may hold anything.

    Args:
        topk_ids_TK: ids of the teacher's top-k; a negative id with log-probability -inf is padding.
        topk_logprobs_TK: their log-probabilities in nats, any float type.
        tail_T: teacher log-mass outside the top-k; [T, B] by bucket where there is a sample.
        token_ids_T: ids of the sampled tokens.
        token_logprob_T: teacher log-probability of the sampled tokens.
        weight_T: weight of each position, 0 where it is not trained.
        rollout_logprob_T: log-probability of the sampled tokens when they were sampled.
        advantage_T: of each token's response, from its reward; NaN where it has none.
        gate_T: weight of the distillation of each token's response; None where all are 1.
        sample: ids beside the top-k, and their chances; those of the top-k in it are left out.
        vocab_size: number of ids that the student's head knows.

    Raises:
        DataError: shapes disagree, or a trained position has an id outside the vocabulary,
            duplicate ids, a log-probability that is NaN or positive, or a total mass far from 1.
    """
    columns = [tail_T, token_ids_T, token_logprob_T, weight_T]
    columns += [] if rollout_logprob_T is None else [rollout_logprob_T]
    require_shapes(topk_ids_TK, topk_logprobs_TK, columns)
    refuse(~(weight_T.isfinite() & (weight_T >= 0)), "weight is negative or not finite")

    live_T = weight_T > 0
    all_live = bool(live_T.all())

    def live(column: Tensor, otherwise: float) -> Tensor:
        column = column.double() if column.is_floating_point() else column.long()
        if all_live:
            return column
        return torch.where(live_T.reshape(-1, *[1] * (column.dim() - 1)), column, otherwise)

    stored = Stored(
        ids_TK=live(topk_ids_TK, -1),
        logprobs_TK=live(topk_logprobs_TK, _NEG_INF),
        tail_T=live(tail_T, _NEG_INF),
        token_ids_T=live(token_ids_T, 0),
        token_logprob_T=live(token_logprob_T, 0.0),
        rollout_logprob_T=None if rollout_logprob_T is None else live(rollout_logprob_T, 0.0),
    )
    check_ids(stored, vocab_size)
    check_logprobs(stored)
    targets = _normalised(stored, weight_T.float(), sample, vocab_size)
    return replace(targets, advantage_T=advantage_T, gate_T=gate_T)


def _normalised(
    stored: Stored, weight_T: Tensor, sample: Sample | None, vocab_size: int
) -> Targets:
    support = with_token(stored) if sample is None else topk_alone(stored)
    full_T = support.valid_TS.sum(-1) == vocab_size
    tail_TB = support.tail_TB.masked_fill(full_T[:, None], _NEG_INF)
    log_mass_T1 = torch.cat([support.logprobs_TS, tail_TB], dim=-1).logsumexp(-1, keepdim=True)
    log_mass_T1 = log_mass_T1.masked_fill((weight_T == 0)[:, None], 0.0)
    refuse((log_mass_T1[:, 0].exp() - 1).abs() > _MASS_TOLERANCE, "total teacher mass is not 1")
    rollout_T = stored.rollout_logprob_T
    return Targets(
        ids_TS=support.ids_TS,
        logprobs_TS=(support.logprobs_TS - log_mass_T1).float(),
        valid_TS=support.valid_TS,
        tail_TB=(tail_TB - log_mass_T1).float(),
        token_ids_T=stored.token_ids_T,
        token_logprob_T=stored.token_logprob_T.float(),
        weight_T=weight_T,
        tail_clamped_T=support.clamped_T & ~full_T & (weight_T > 0),
        rollout_logprob_T=None if rollout_T is None else rollout_T.float(),
        sample=None
        if sample is None
        else _beside(sample, support, weight_T > 0, vocab_size=vocab_size),
    )


def _beside(sample: Sample, support: Support, live_T: Tensor, *, vocab_size: int) -> Sample:
    """Return the part of a sample that lies outside the support, checked."""
    there_TN = live_T[:, None] & (sample.log_weights_TN > _NEG_INF)
    ids_TN = torch.where(there_TN, sample.ids_TN, 0)
    refuse(
        ((ids_TN < 0) | (ids_TN >= vocab_size)).any(-1),
        f"id of a sample outside the vocabulary of {vocab_size}",
    )
    kept = sample.without(~there_TN)
    for values in (kept.logprobs_TN, kept.rollout_logprobs_TN):
        if values is not None:
            bad_T = ~(values <= LOGPROB_ROUNDING).all(-1)
            refuse(bad_T, "log-probability of a sample is NaN or positive")
    inside_TNS = (ids_TN[:, :, None] == support.ids_TS[:, None]) & support.valid_TS[:, None]
    return sample.without(~there_TN | inside_TNS.any(-1))
