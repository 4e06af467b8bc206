"""A teacher at another temperature than its scores are of. Pure.

Promises: exact from a scored log Z; without one, from bounds of what the tail can be, or refused.
Shapes: T tokens, S support, whose last column is the sampled token.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.targets import Targets, Tempered
from schemas.errors import ConfigError

UNCERTAIN_NATS = 0.01
"""Most that log Z may be uncertain by, where it was not scored."""


class Cooled(NamedTuple):
    """A teacher at a temperature, on support and tail."""

    logprobs_TS: Tensor
    tail_T: Tensor
    log_z_T: Tensor
    uncertain_T: Tensor
    """Nats between the bounds of log Z; 0 where it was scored."""


def with_temperature(
    targets: Targets, temperature: float, log_z_T: Tensor | None, *, vocab_size: int
) -> Targets:
    """Return targets that also have the teacher at a temperature.

    Args:
        targets: without a sample, of temperature 1.
        temperature: other than 1.
        log_z_T: log Σ p^(1/T) over all ids, NaN where it was not scored; None for nowhere.
        vocab_size: number of ids that the student's head knows.

    Raises:
        ConfigError: log Z was not scored at a trained position, and is not known well enough.
    """
    live_T = targets.weight_T > 0
    if log_z_T is None:
        log_z_T = torch.full_like(targets.weight_T, math.nan)
    cooled = cool(
        targets.logprobs_TS.double(),
        targets.valid_TS,
        targets.tail_T.double(),
        temperature=temperature,
        log_z_T=log_z_T.double().masked_fill(~live_T, math.nan),
        vocab_size=vocab_size,
    )
    _require_known(cooled.uncertain_T[live_T], temperature)
    token_T = targets.token_logprob_T.double() / temperature - cooled.log_z_T
    tempered = Tempered(
        temperature=temperature,
        logprobs_TS=cooled.logprobs_TS.float(),
        tail_TB=cooled.tail_T[:, None].float(),
        token_logprob_T=token_T.float(),
    )
    return replace(targets, tempered=tempered)


def cool(
    logprobs_TS: Tensor,
    valid_TS: Tensor,
    tail_T: Tensor,
    *,
    temperature: float,
    log_z_T: Tensor,
    vocab_size: int,
) -> Cooled:
    """Return a teacher at a temperature, float64.

    Each id of the support is p^(1/T)/Z. The tail is what they leave of 1; rounding of the scores
    may leave too much or too little, so it is kept inside what p^(1/T) of the tail's ids can be.

    Args:
        logprobs_TS: of the support at temperature 1, with the tail a whole distribution.
        valid_TS: False on padded columns.
        tail_T: log mass outside the support.
        temperature: other than 1.
        log_z_T: log Z, NaN where it was not scored.
        vocab_size: number of ids.
    """
    raw_TS = (logprobs_TS / temperature).masked_fill(~valid_TS, -math.inf)
    inside_T, scored_T = raw_TS.logsumexp(-1), ~log_z_T.isnan()
    low_T, high_T = _tail_bounds(logprobs_TS, valid_TS, tail_T, temperature, vocab_size)
    middle_T = torch.logaddexp(low_T, high_T) - math.log(2.0)
    log_z_T = torch.where(scored_T, log_z_T, torch.logaddexp(inside_T, middle_T))
    left_T = log_z_T + _log1mexp(inside_T - log_z_T)
    # a teacher may have ids that the student lacks: more of them bound T > 1 less
    most_T = high_T if temperature < 1.0 else high_T.masked_fill(tail_T > -math.inf, math.inf)
    rest_T = torch.where(scored_T, left_T.clamp(low_T, most_T), middle_T)
    whole_T = torch.logaddexp(inside_T, rest_T)  # log Z but for the rounding of scores
    width_T = torch.logaddexp(inside_T, high_T) - torch.logaddexp(inside_T, low_T)
    return Cooled(
        logprobs_TS=raw_TS - whole_T[:, None],
        tail_T=rest_T - whole_T,
        log_z_T=log_z_T,
        uncertain_T=width_T.masked_fill(scored_T, 0.0),
    )


def _tail_bounds(
    logprobs_TS: Tensor, valid_TS: Tensor, tail_T: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Return the least and the most that log Σ p^(1/T) over the ids of the tail can be.

    One end is that all have the same p, the other that each has as much as the least of the top-k.
    """
    count_T = (vocab_size - valid_TS.sum(-1)).clamp(min=1).to(tail_T.dtype)
    even_T = (1.0 - 1.0 / temperature) * count_T.log() + tail_T / temperature
    least_T = logprobs_TS.masked_fill(~valid_TS, 0.0)[:, :-1].amin(-1)
    peaked_T = tail_T + (1.0 / temperature - 1.0) * least_T
    ends = (even_T, peaked_T) if temperature < 1.0 else (peaked_T, even_T)
    empty_T = tail_T == -math.inf
    low_T, high_T = (end.masked_fill(empty_T, -math.inf) for end in ends)
    return torch.minimum(low_T, high_T), torch.maximum(low_T, high_T)


def _log1mexp(share_T: Tensor) -> Tensor:
    """Return log(1 − exp(share)), -inf where the share is 0 or, by rounding, above."""
    below_T = share_T.clamp(max=0.0)
    near_T = (-torch.expm1(below_T)).log()
    far_T = torch.log1p(-below_T.exp())
    return torch.where(below_T > -math.log(2.0), near_T, far_T)


def _require_known(uncertain_T: Tensor, temperature: float) -> None:
    bad = int((uncertain_T > UNCERTAIN_NATS).sum())
    if bad:
        raise ConfigError(
            f"loss.temperature = {temperature:g} needs the teacher's log Z at this temperature, "
            f"which the scores do not have: at {bad} of {len(uncertain_T)} positions it is "
            f"uncertain by up to {float(uncertain_T.max()):.3g} nats, at most {UNCERTAIN_NATS} "
            f"would pass. Set score.temperatures = [{temperature:g}] under another run.name, and "
            "score again"
        )
