"""The ids of each position that are looked at one by one, and the tail that is left. Pure.

Shapes: T tokens, K top-k, S support = top-k and, without a sample, the sampled token, B buckets of
the tail.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NEG_INF = -math.inf

_TAIL_EPSILON = 1e-6  # smallest share of the tail that stays when the sampled token leaves it


class Stored(NamedTuple):
    """What the store holds, in float64; positions of weight 0 are blank: id 0 has all mass."""

    ids_TK: Tensor
    logprobs_TK: Tensor
    tail_T: Tensor
    token_ids_T: Tensor
    token_logprob_T: Tensor
    rollout_logprob_T: Tensor | None


class Support(NamedTuple):
    """Ids that are looked at one by one, the teacher's side of them, and what is left."""

    ids_TS: Tensor
    logprobs_TS: Tensor
    valid_TS: Tensor
    tail_TB: Tensor
    clamped_T: Tensor


def with_token(stored: Stored) -> Support:
    """Return top-k and sampled token."""
    token_T1 = stored.token_ids_T[:, None]
    new_T = ~(stored.ids_TK == token_T1).any(-1)
    valid_TS = torch.cat([stored.ids_TK >= 0, new_T[:, None]], dim=-1)
    ids_TS = torch.cat([stored.ids_TK, token_T1], dim=-1)
    logprobs_TS = torch.cat([stored.logprobs_TK, stored.token_logprob_T[:, None]], dim=-1)
    tail_T, clamped_T = _without_token(stored, new_T)
    return Support(
        ids_TS=torch.where(valid_TS, ids_TS, token_T1),
        logprobs_TS=logprobs_TS.masked_fill(~valid_TS, _NEG_INF),
        valid_TS=valid_TS,
        tail_TB=tail_T[:, None],
        clamped_T=clamped_T,
    )


def topk_alone(stored: Stored) -> Support:
    """Return the top-k, a padded column with the first id again."""
    valid_TK = stored.ids_TK >= 0
    return Support(
        ids_TS=torch.where(valid_TK, stored.ids_TK, stored.ids_TK[:, :1].clamp(min=0)),
        logprobs_TS=stored.logprobs_TK,
        valid_TS=valid_TK,
        tail_TB=stored.tail_T.reshape(len(valid_TK), -1),
        clamped_T=torch.zeros_like(stored.token_ids_T, dtype=torch.bool),
    )


def _without_token(stored: Stored, new_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tail without the token where it is new, and where rounding had to be clamped."""
    token_T, tail_T = stored.token_logprob_T, stored.tail_T
    clamped_T = new_T & (token_T > tail_T - _TAIL_EPSILON)
    share_T = (token_T - tail_T.masked_fill(tail_T == _NEG_INF, 0.0)).clamp(max=-_TAIL_EPSILON)
    rest_T = (-torch.expm1(share_T)).log()  # both of the tail, as log shares
    return torch.where(new_T, tail_T + rest_T, tail_T), clamped_T
