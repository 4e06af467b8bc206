"""The term of the rewards: a clipped policy gradient of the sampled tokens. Pure.

Shapes: T tokens.
"""

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
