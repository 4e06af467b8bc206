"""What a student says of whole responses, seen without a gradient, and what follows for each token.

Promises: a response's tokens depend on each other alone, so that it says the same in any batch.
Shapes: T tokens.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.outside import LOWEST
from pipeline.objectives.sides import Sides
from pipeline.objectives.targets import Plan, Targets
from pipeline.objectives.tokens.policy import token_signal
from pipeline.objectives.tokens.rows import Grid, grid_of
from pipeline.objectives.tokens.weights import Weighed, clip_factor, token_weights
from schemas.config.loss import POLICY, LossConfig


class Seen(NamedTuple):
    """What is seen of the student at each position; constants."""

    token_logprob_T: Tensor
    entropy_T: Tensor
    divergence_T: Tensor
    """That of the objective, not negative; of the policy gradient, |log p(y) − log q(y)|."""


def no_look(targets: Targets) -> Seen:
    """Return what is seen where nobody has looked: zeros, to be filled."""
    return Seen(*(targets.token_logprob_T.new_zeros(len(targets)) for _ in Seen._fields))


def planned(targets: Targets, seen: Seen, loss: LossConfig) -> Targets:
    """Return targets with what the objective takes from whole responses.

    Raises:
        ValueError: nobody said which token is of which response.
    """
    if targets.row_T is None:
        raise ValueError("the objective looks at whole responses: targets need row_T")
    grid, plan = grid_of(targets.row_T), Plan()
    if loss.kind == POLICY and loss.of_responses and targets.sample is None:
        signal = token_signal(seen.token_logprob_T, targets, loss, grid)
        plan = replace(plan, **signal._asdict())
    if loss.weights.changed:
        plan = replace(plan, **_weights(targets, seen, loss, grid))
    return replace(targets, plan=plan)


def kept_share(sides: Sides, _: LossConfig) -> Tensor:
    """Return 1 for each token that is learned from, 0 for one whose weight is 0."""
    return token_weight(sides, _) > 0


def token_weight(sides: Sides, _: LossConfig) -> Tensor:
    """Return the factor of each token's distillation loss."""
    plan = sides.targets.plan
    if plan is None or plan.weight_T is None:
        return torch.ones_like(sides.log_z_T)
    return plan.weight_T


def clipped_share(sides: Sides, _: LossConfig) -> Tensor:
    """Return 1 for each token whose divergence is above `divergence_clip`, else 0."""
    plan = sides.targets.plan
    if plan is None or plan.clipped_T is None:
        return torch.zeros_like(sides.log_z_T)
    return plan.clipped_T


def _weights(targets: Targets, seen: Seen, loss: LossConfig, grid: Grid) -> dict[str, Tensor]:
    """Return the fields of a plan about weights."""
    keys, ratio_T = loss.weights, log_ratio(seen.token_logprob_T, targets, loss)
    weight_T = token_weights(
        Weighed(seen.entropy_T, seen.divergence_T, ratio_T),
        keys,
        grid,
        trained_T=targets.weight_T > 0,
        factor_T=targets.factor_T,
    )
    if keys.divergence_clip is None:
        return {"weight_T": weight_T}
    return {
        "weight_T": weight_T,
        "clipped_T": clip_factor(seen.divergence_T, keys.divergence_clip) < 1.0,
    }


def log_ratio(token_logprob_T: Tensor, targets: Targets, loss: LossConfig) -> Tensor:
    """Return |log p(y) − log q(y)|, finite."""
    teacher_T = targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor)
    return (teacher_T - token_logprob_T.clamp(min=LOWEST)).abs()
