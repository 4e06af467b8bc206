"""Weights of tokens: which are learned from, and how much, by what the student says of them. Pure.

Promises: weights are constants; a response's depend on the response alone; masks stay.
Shapes: T tokens; B responses, L tokens of the longest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.tokens.rows import Grid, before, top_share
from schemas.config.objective.weights import WeightsSection


class Weighed(NamedTuple):
    """What weights are made of at each token; constants."""

    entropy_T: Tensor
    """Of the student."""
    divergence_T: Tensor
    """Between teacher and student, not negative."""
    log_ratio_T: Tensor
    """|log p(y) − log q(y)|."""


def token_weights(
    found: Weighed,
    weights: WeightsSection,
    grid: Grid,
    *,
    trained_T: Tensor,
    factor_T: Tensor | None,
) -> Tensor:
    """Return the weight of each token, 0 where it is not trained.

    Args:
        found: what the student says.
        weights: the settings.
        grid: where tokens stand in their responses.
        trained_T: bool, which are trained.
        factor_T: what is known of their weights beforehand.
    """
    weight_T = trained_T.to(found.divergence_T)
    if weights.least_divergence:
        weight_T = weight_T * (found.divergence_T >= weights.least_divergence)
    if weights.divergence_clip is not None:
        weight_T = weight_T * clip_factor(found.divergence_T, weights.divergence_clip)
    weight_BL, trained_BL = grid.lay(weight_T), grid.lay(trained_T) > 0
    if weights.entropy_share < 1.0 or weights.divergence_share < 1.0:
        weight_BL = weight_BL * _selected(found, weights, grid, trained_BL)
    if weights.prefix:
        weight_BL = weight_BL * _falling(found, weights.prefix, grid, trained_BL)
    if factor_T is not None:
        weight_BL = weight_BL * grid.lay(factor_T)
    if weights.rescale:
        total_B1, count_B1 = (x.sum(1, keepdim=True) for x in (weight_BL, trained_BL))
        weight_BL = weight_BL * torch.where(total_B1 > 0, count_B1 / total_B1, 0.0)
    return grid.pick(weight_BL).to(found.divergence_T)


def clip_factor(divergence_T: Tensor, most: float) -> Tensor:
    """Return the factor, at most 1, that makes divergences `most` nats at most.

    Of a token's sum: cutting its single terms, some of which are negative, would turn the loss
    around. Source of the clip: OPSD, arXiv 2601.18734.
    """
    return (most / divergence_T.clamp(min=most)).to(divergence_T)


def _selected(found: Weighed, weights: WeightsSection, grid: Grid, trained_BL: Tensor) -> Tensor:
    """Return the largest of each response by entropy, by divergence, or by either."""
    chosen = [
        top_share(grid.lay(values_T), trained_BL, share)
        for values_T, share in (
            (found.entropy_T, weights.entropy_share),
            (found.divergence_T, weights.divergence_share),
        )
        if share < 1.0
    ]
    return torch.stack(chosen).any(0)


def _falling(found: Weighed, gamma: float, grid: Grid, trained_BL: Tensor) -> Tensor:
    """Return 1 + γ(1 − share of the log ratios that came before); IW-OPD, arXiv 2606.22600."""
    ratio_BL = grid.lay(found.log_ratio_T) * trained_BL
    total_B1 = ratio_BL.sum(1, keepdim=True).clamp(min=1e-12)
    return 1.0 + gamma * (1.0 - before(ratio_BL) / total_B1)
