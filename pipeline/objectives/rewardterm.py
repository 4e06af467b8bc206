"""Rewards beside distillation: their own term, and how much of distillation is left. Pure.

The first is a clipped policy gradient of the sampled tokens. Shapes: T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.objectives.sides import Sides
from schemas.config.loss import LossConfig
from schemas.errors import DataError

_MAX_LOG_RATIO = 20.0


def reward_term(sides: Sides, loss: LossConfig) -> Tensor:
    """Return −min(ρ·A, clip(ρ)·A) of each token; 0 where its response has no reward.

    ρ = q(y)/μ(y), A the advantage of the response. The clip has two sides of its own.
    Sources: PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300; DAPO, arXiv 2503.14476.

    Raises:
        DataError: there are no advantages, or no log-probabilities of the rollout.
    """
    ratio_T, advantage_T = _ratio(sides), _advantage(sides)
    clipped_T = ratio_T.clamp(1.0 - loss.clip_low, 1.0 + loss.clip_high)
    gain_T = torch.minimum(ratio_T * advantage_T.nan_to_num(), clipped_T * advantage_T.nan_to_num())
    return -gain_T.masked_fill(advantage_T.isnan(), 0.0)


def clipped_share(sides: Sides, loss: LossConfig) -> Tensor:
    """Return 1 for each token whose ratio is clipped, so that it has no gradient; 0 for others."""
    if not loss.rl_weight:
        return torch.zeros_like(sides.log_z_T)
    ratio_T, advantage_T = _ratio(sides), _advantage(sides)
    good_T, bad_T = advantage_T > 0, advantage_T < 0
    return (good_T & (ratio_T > 1.0 + loss.clip_high)) | (bad_T & (ratio_T < 1.0 - loss.clip_low))


def gated(distilled_T: Tensor, sides: Sides) -> Tensor:
    """Return the distillation loss of each token with the weight of its response and its step."""
    weight_T = _gate(sides)
    return distilled_T if weight_T is None else distilled_T * weight_T


def compressed(advantage_T: Tensor, loss: LossConfig) -> Tensor:
    """Return advantages ± c·log(1 + |A|/c), which grow slowly beyond c; small ones stay.

    Source: SAF-OPD, arXiv 2607.29209, tames the distillation advantage beside that of rewards.
    """
    if loss.gate is None or loss.gate.compress_nats is None:
        return advantage_T
    scale = loss.gate.compress_nats
    return advantage_T.sign() * scale * torch.log1p(advantage_T.abs() / scale)


def distilled_share(sides: Sides, _: LossConfig) -> Tensor:
    """Return the share of its weight that each token's distillation has."""
    weight_T = _gate(sides)
    return torch.ones_like(sides.log_z_T) if weight_T is None else weight_T


def shut_share(sides: Sides, _: LossConfig) -> Tensor:
    """Return 1 for each token whose response does not distil, 0 for others."""
    gate_T = sides.targets.gate_T
    return torch.zeros_like(sides.log_z_T) if gate_T is None else gate_T == 0


BESIDE: dict[str, Callable[[Sides, LossConfig], Tensor]] = {
    "ratio_clipped": clipped_share,
    "distilled": distilled_share,
    "gate_shut": shut_share,
}
"""What is told of each token of rewards and gates, by the name of its metric."""


def _gate(sides: Sides) -> Tensor | None:
    gate_T, factor = sides.targets.gate_T, sides.targets.distill
    if gate_T is not None:
        return gate_T * factor
    return None if factor == 1.0 else torch.full_like(sides.log_z_T, factor)


def _ratio(sides: Sides) -> Tensor:
    rollout_T = sides.targets.rollout_logprob_T
    if rollout_T is None:
        raise DataError("rewards need the rollout's log-probabilities, there are none")
    log_ratio_T = sides.student_token_logprob_T - rollout_T
    return log_ratio_T.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def _advantage(sides: Sides) -> Tensor:
    if sides.targets.advantage_T is None:
        raise DataError("loss.rl_weight needs the rewards of the round, there are none")
    return sides.targets.advantage_T
