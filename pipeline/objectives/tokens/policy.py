"""The policy gradient of sampled tokens: advantages under the current student, ratios, clips. Pure.

Promises: advantages, ratios and weights are constants; the gradient goes through log q(y) alone.
Shapes: T tokens; B responses, L tokens of the longest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.divergences import Divergence
from pipeline.objectives.estimators import cut_share, estimated
from pipeline.objectives.outside import LOWEST
from pipeline.objectives.rewardterm import compressed
from pipeline.objectives.sides import Sides
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens.rows import Grid, before, discounted
from schemas.config.loss import POLICY, LossConfig
from schemas.errors import DataError

MAX_LOG_RATIO = 20.0


class Signal(NamedTuple):
    """What the gradient of each token's log q(y) is multiplied by, in parts; constants."""

    advantage_T: Tensor
    log_ratio_T: Tensor
    """Log of the importance weight, as it is; 0 where there are none."""


def policy_gradient(sides: Sides, loss: LossConfig) -> Tensor:
    """Return the loss of each token: by its sampled token, or by a sample where there is one.

    Raises:
        DataError: importance weights lack the rollout's log-probabilities.
    """
    if sides.targets.sample is not None:
        return estimated(sides, _OVER_IDS, loss)
    signal, token_T = _signal_of(sides, loss), _finite(sides.student_token_logprob_T)
    pulled_T = _pulled(signal, token_T, loss)
    if loss.policy.kl_type == "advantage":
        return pulled_T
    value_T = _estimate(sides, loss) * _weight(signal.log_ratio_T, loss)
    return value_T + (pulled_T - pulled_T.detach())


def token_signal(
    token_logprob_T: Tensor, targets: Targets, loss: LossConfig, grid: Grid | None = None
) -> Signal:
    """Return advantages and ratios under a student that gives tokens these log-probabilities.

    Args:
        token_logprob_T: log q(y) of the current student.
        targets: teacher side of the same positions.
        loss: the objective.
        grid: where tokens stand in their responses, where the objective asks for it.
    """
    now_T = _finite(token_logprob_T.detach())
    own_T = advantage(targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor) - now_T, loss)
    own_T = own_T.masked_fill(now_T <= LOWEST, 0.0)  # q·log q is 0 at q = 0
    log_ratio_T = _token_log_ratio(now_T, targets, loss)
    if grid is None:
        return Signal(own_T, log_ratio_T)
    trained_T = targets.weight_T > 0
    return Signal(
        advantage_T=_of_response(own_T.where(trained_T, 0.0), trained_T, grid, loss).to(now_T),
        log_ratio_T=_level(log_ratio_T.where(trained_T, 0.0), trained_T, grid, loss).to(now_T),
    )


def clipped_share(sides: Sides, loss: LossConfig) -> Tensor:
    """Return 1 for each token whose ratio the clip of the policy gradient stopped, else 0."""
    if loss.kind != POLICY or sides.targets.sample is not None:
        return torch.zeros_like(sides.log_z_T)
    return _stopped(_signal_of(sides, loss), loss)


def weight_cut_share(sides: Sides, loss: LossConfig) -> Tensor:
    """Return the share of each position's importance weights that were cut or masked."""
    if loss.kind != POLICY or sides.targets.sample is not None or loss.importance == "none":
        return cut_share(sides, loss)
    ratio_T = _signal_of(sides, loss).log_ratio_T.exp()
    return (ratio_T > loss.importance_cap) | (ratio_T < loss.policy.importance_floor)


def advantage(log_ratio: Tensor, loss: LossConfig) -> Tensor:
    """Return the advantage of an id whose teacher's over student's probability has this log.

    With `mix` it is bounded below. Source: TOP-D, arXiv 2607.04751.
    """
    mix, clip = loss.policy.mix, loss.advantage_clip
    if mix < 1.0:
        rest = torch.full_like(log_ratio, math.log1p(-mix))
        log_ratio = torch.logaddexp(log_ratio + math.log(mix), rest)
    return compressed(log_ratio if clip is None else log_ratio.clamp(-clip, clip), loss)


def _term(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Return −q·A of ids, whose gradient is −q·A·∇log q."""
    now = log_q.detach()
    return _pull(log_p, now, loss) * (log_q - now).exp()


def _pull(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    return -log_q.exp() * advantage(log_p - log_q, loss)


_OVER_IDS = Divergence(_term, _pull)
"""The expectation over all ids, in the form that sums over a sample have."""


def _signal_of(sides: Sides, loss: LossConfig) -> Signal:
    plan = sides.targets.plan
    if plan is not None and plan.advantage_T is not None and plan.log_ratio_T is not None:
        return Signal(plan.advantage_T, plan.log_ratio_T)
    return token_signal(sides.student_token_logprob_T, sides.targets, loss)


def _pulled(signal: Signal, token_T: Tensor, loss: LossConfig) -> Tensor:
    """Return −A·log q(y), or −min(ρ·A, clip(ρ)·A) with the gradient through log q(y)."""
    if loss.importance == "none":
        return -signal.advantage_T * token_T
    weight_T = _weight(signal.log_ratio_T, loss)
    pulled_T = -signal.advantage_T * weight_T * (token_T - token_T.detach()).exp()
    bound_T = signal.log_ratio_T.exp().clamp(*_bounds(loss))
    return torch.where(_stopped(signal, loss), -signal.advantage_T * bound_T, pulled_T)


def _finite(logprob_T: Tensor) -> Tensor:
    return logprob_T.clamp(min=LOWEST)


def _bounds(loss: LossConfig) -> tuple[float, float]:
    low, high = loss.policy.clip_low, loss.policy.clip_high
    return (0.0 if low is None else 1.0 - low, math.inf if high is None else 1.0 + high)


def _stopped(signal: Signal, loss: LossConfig) -> Tensor:
    """Return where the clip leaves no gradient; source: PPO, arXiv 1707.06347."""
    low, high = _bounds(loss)
    ratio_T, advantage_T = signal.log_ratio_T.exp(), signal.advantage_T
    return ((advantage_T > 0) & (ratio_T > high)) | ((advantage_T < 0) & (ratio_T < low))


def _weight(log_ratio_T: Tensor, loss: LossConfig) -> Tensor:
    """Return importance weights, none above the cap and none below the floor."""
    ratio_T = log_ratio_T.exp()
    below_T = ratio_T < loss.policy.importance_floor
    if loss.policy.beyond_cap == "mask":
        return ratio_T.masked_fill(below_T | (ratio_T > loss.importance_cap), 0.0)
    return ratio_T.clamp(max=loss.importance_cap).masked_fill(below_T, 0.0)


def _estimate(sides: Sides, loss: LossConfig) -> Tensor:
    """Return the KL's estimate by the sampled token that `kl_type` names."""
    now_T = _finite(sides.student_token_logprob_T.detach())
    r_T = now_T - sides.targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor)
    if loss.policy.kl_type == "k2":
        return r_T.square() / 2
    if loss.policy.kl_type == "k1+":
        return r_T
    return torch.expm1((-r_T).clamp(max=MAX_LOG_RATIO)) + r_T


def _token_log_ratio(now_T: Tensor, targets: Targets, loss: LossConfig) -> Tensor:
    if loss.importance == "none":
        return torch.zeros_like(now_T)
    if targets.rollout_logprob_T is None:
        raise DataError("importance weights need the rollout's log-probabilities, there are none")
    return (now_T - targets.rollout_logprob_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _of_response(own_T: Tensor, trained_T: Tensor, grid: Grid, loss: LossConfig) -> Tensor:
    """Return what advantages become by those of other tokens; float64."""
    policy, own_BL, trained_BL = loss.policy, grid.lay(own_T), grid.lay(trained_T)
    found_BL = discounted(own_BL, policy.discount)
    if policy.baseline == "before":  # of own advantages: returns would look ahead
        found_BL = found_BL - before(own_BL) / before(trained_BL).clamp(min=1.0)
    elif policy.baseline == "response":
        found_BL = found_BL * trained_BL
        others_B1 = (trained_BL.sum(1, keepdim=True) - 1.0).clamp(min=1.0)
        found_BL = found_BL - (found_BL.sum(1, keepdim=True) - found_BL) / others_B1
    if policy.standardize:
        squares_BL = found_BL.square() * trained_BL
        mean_B1 = squares_BL.sum(1, keepdim=True) / trained_BL.sum(1, keepdim=True).clamp(min=1.0)
        found_BL = found_BL / mean_B1.sqrt().clamp(min=_LEAST)
    return grid.pick(found_BL)


_LEAST = 1e-6
"""Least divisor of advantages, in nats: below it there is nothing but rounding."""


def _level(log_ratio_T: Tensor, trained_T: Tensor, grid: Grid, loss: LossConfig) -> Tensor:
    """Return log ratios of what `loss.importance` weighs: tokens or responses."""
    if loss.importance not in ("geometric", "sequence"):
        return log_ratio_T
    ratios_BL = grid.lay(log_ratio_T)
    total_B1 = ratios_BL.sum(1, keepdim=True)
    if loss.importance == "geometric":
        total_B1 = total_B1 / grid.lay(trained_T).sum(1, keepdim=True).clamp(min=1.0)
    return grid.pick(total_B1.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expand_as(ratios_BL))
