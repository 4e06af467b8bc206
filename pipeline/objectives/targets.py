"""The teacher's side of a batch: checked, normalised targets of flat token positions.

Pure: no I/O, no random numbers, no state. Shapes: T tokens (all sequences of a batch, end to end),
K top-k, S support = top-k and sampled token (K + 1 columns), V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.errors import DataError
from schemas.tables import LOGPROB_ROUNDING

_NEG_INF = -math.inf

_MASS_TOLERANCE = 0.05  # 16-bit log-probabilities move the total mass by less than this

_TAIL_EPSILON = 1e-6  # smallest share of the tail that stays when the sampled token leaves it


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
    tail_T: Tensor
    """float32 teacher log-mass outside the support; -inf where there is none."""
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

    @property
    def gathered_TG(self) -> Tensor:
        """Return the ids whose logits objectives look at one by one: support, sampled token."""
        return torch.cat([self.ids_TS, self.token_ids_T[:, None]], dim=-1)

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
        values: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            values[field.name] = None if tensor is None else change(tensor)
        return Targets(**values)

    def require_rows(self, num_rows: int) -> None:
        """Raise DataError unless there are `num_rows` positions."""
        if len(self) != num_rows:
            raise DataError(f"{len(self)} target positions for {num_rows} positions of the model")


def build_targets(
    topk_ids_TK: Tensor,
    topk_logprobs_TK: Tensor,
    *,
    tail_T: Tensor,
    token_ids_T: Tensor,
    token_logprob_T: Tensor,
    weight_T: Tensor,
    rollout_logprob_T: Tensor | None = None,
    vocab_size: int,
) -> Targets:
    """Return checked targets whose support is the teacher's top-k and the sampled token.

    The sampled token's mass leaves the tail, P is renormalised over support and tail, and the tail
    is dropped where the support is the whole vocabulary. Positions of weight 0 may hold anything.

    Args:
        topk_ids_TK: ids of the teacher's top-k; a negative id with log-probability -inf is padding.
        topk_logprobs_TK: their log-probabilities in nats, any float type.
        tail_T: teacher log-mass outside the top-k.
        token_ids_T: ids of the sampled tokens.
        token_logprob_T: teacher log-probability of the sampled tokens.
        weight_T: weight of each position, 0 where it is not trained.
        rollout_logprob_T: log-probability of the sampled tokens when they were sampled.
        vocab_size: number of ids that the student's head knows.

    Raises:
        DataError: shapes disagree, or a trained position has an id outside the vocabulary,
            duplicate ids, a log-probability that is NaN or positive, or a total mass far from 1.
    """
    columns = [tail_T, token_ids_T, token_logprob_T, weight_T]
    columns += [] if rollout_logprob_T is None else [rollout_logprob_T]
    _require_shapes(topk_ids_TK, topk_logprobs_TK, columns)
    _refuse(~(weight_T.isfinite() & (weight_T >= 0)), "weight is negative or not finite")

    def live(column: Tensor, otherwise: float) -> Tensor:
        trained = (weight_T > 0).reshape(-1, *[1] * (column.dim() - 1))
        column = column.double() if column.is_floating_point() else column.long()
        return torch.where(trained, column, otherwise)

    stored = _Stored(
        ids_TK=live(topk_ids_TK, -1),
        logprobs_TK=live(topk_logprobs_TK, _NEG_INF),
        tail_T=live(tail_T, _NEG_INF),
        token_ids_T=live(token_ids_T, 0),
        token_logprob_T=live(token_logprob_T, 0.0),
        rollout_logprob_T=None if rollout_logprob_T is None else live(rollout_logprob_T, 0.0),
    )
    _check_ids(stored, vocab_size)
    _check_logprobs(stored)
    return _normalised(stored, weight_T.float(), vocab_size)


class _Stored(NamedTuple):
    """What the store holds, in float64; positions of weight 0 are blank: id 0 has all mass."""

    ids_TK: Tensor
    logprobs_TK: Tensor
    tail_T: Tensor
    token_ids_T: Tensor
    token_logprob_T: Tensor
    rollout_logprob_T: Tensor | None


def _normalised(stored: _Stored, weight_T: Tensor, vocab_size: int) -> Targets:
    token_T1, rollout_T = stored.token_ids_T[:, None], stored.rollout_logprob_T
    new_T = ~(stored.ids_TK == token_T1).any(-1)
    valid_TS = torch.cat([stored.ids_TK >= 0, new_T[:, None]], dim=-1)
    ids_TS = torch.cat([stored.ids_TK, token_T1], dim=-1)
    logprobs_TS = torch.cat([stored.logprobs_TK, stored.token_logprob_T[:, None]], dim=-1)
    logprobs_TS = logprobs_TS.masked_fill(~valid_TS, _NEG_INF)
    tail_T, clamped_T = _without_token(stored, new_T)
    full_T = valid_TS.sum(-1) == vocab_size
    tail_T = tail_T.masked_fill(full_T, _NEG_INF)
    log_mass_T = torch.cat([logprobs_TS, tail_T[:, None]], dim=-1).logsumexp(-1)
    _refuse((log_mass_T.exp() - 1).abs() > _MASS_TOLERANCE, "total teacher mass is not 1")
    return Targets(
        ids_TS=torch.where(valid_TS, ids_TS, token_T1),
        logprobs_TS=(logprobs_TS - log_mass_T[:, None]).float(),
        valid_TS=valid_TS,
        tail_T=(tail_T - log_mass_T).float(),
        token_ids_T=stored.token_ids_T,
        token_logprob_T=stored.token_logprob_T.float(),
        weight_T=weight_T,
        tail_clamped_T=clamped_T & ~full_T & (weight_T > 0),
        rollout_logprob_T=None if rollout_T is None else rollout_T.float(),
    )


def _without_token(stored: _Stored, new_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tail without the token where it is new, and where rounding had to be clamped."""
    token_T, tail_T = stored.token_logprob_T, stored.tail_T
    clamped_T = new_T & (token_T > tail_T - _TAIL_EPSILON)
    share_T = (token_T - tail_T.masked_fill(tail_T == _NEG_INF, 0.0)).clamp(max=-_TAIL_EPSILON)
    rest_T = (-torch.expm1(share_T)).log()  # both of the tail, as log shares
    return torch.where(new_T, tail_T + rest_T, tail_T), clamped_T


def _require_shapes(ids_TK: Tensor, logprobs_TK: Tensor, columns: list[Tensor]) -> None:
    shapes = [tuple(column.shape) for column in columns]
    if ids_TK.dim() != 2 or ids_TK.shape != logprobs_TK.shape or {*shapes} != {ids_TK.shape[:1]}:
        raise DataError(
            f"shapes disagree: top-k ids {tuple(ids_TK.shape)}, top-k log-probabilities "
            f"{tuple(logprobs_TK.shape)}, per-token columns {shapes}"
        )


def _refuse(bad_T: Tensor, found: str) -> None:
    if bool(bad_T.any()):
        count, first = int(bad_T.sum()), int(bad_T.nonzero()[0, 0])
        raise DataError(f"{found} at {count} of {len(bad_T)} positions, the first is {first}")


def _check_ids(stored: _Stored, vocab_size: int) -> None:
    ids_TK, token_T = stored.ids_TK, stored.token_ids_T
    padding_TK = (ids_TK < 0) & (stored.logprobs_TK == _NEG_INF)
    bad_TK = ~padding_TK & ((ids_TK < 0) | (ids_TK >= vocab_size))
    _refuse(bad_TK.any(-1), f"teacher top-k id outside the vocabulary of {vocab_size}")
    bad_T = (token_T < 0) | (token_T >= vocab_size)
    _refuse(bad_T, f"sampled id outside the vocabulary of {vocab_size}")
    sorted_TK = ids_TK.sort(-1).values
    same_TK = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)
    _refuse(same_TK.any(-1), "duplicate teacher top-k ids")


def _check_logprobs(stored: _Stored) -> None:
    for owner, logprobs in [
        ("teacher top-k", stored.logprobs_TK),
        ("teacher tail", stored.tail_T),
        ("teacher sampled-token", stored.token_logprob_T),
        ("rollout", stored.rollout_logprob_T),
    ]:
        if logprobs is not None:
            bad = ~(logprobs <= LOGPROB_ROUNDING)
            bad_T = bad if bad.dim() == 1 else bad.any(-1)
            _refuse(bad_T, f"{owner} log-probability is NaN or positive")
