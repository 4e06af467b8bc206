"""Threshold samples: the likeliest ids of a distribution for certain, the rest by a fair lot. Pure.

Systematic sampling in proportion to size, without replacement. For n places the threshold solves
Σ min(1, weight / threshold) = n; an id is in the sample with probability weight / threshold, or for
certain where that is 1 or more. Shapes: T positions, V vocabulary, N places.
"""

import torch
from torch import Tensor

SLACK = 1e-13
"""Share of all places by which rounding may bring an id below the threshold and leave it certain:
far above what float64 loses in a sum over a vocabulary, so that no id is drawn twice."""


def threshold_sample(weights_TV: Tensor, uniforms_T: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Return the ids of a sample of each position, and its threshold.

    Which ids are drawn depends on the weights and the one uniform number of a position alone.

    Args:
        weights_TV: probabilities, or a multiple of them; any float type.
        uniforms_T: float64 numbers in [0, 1).
        places: distinct ids of a position.

    Returns:
        int64 [T, N] ids by falling weight, equal ones by id, -1 where fewer have weight; float64
        [T] thresholds in the unit of the weights, 0 where no id but those of the sample has weight.
    """
    num = min(places, weights_TV.shape[1])
    top_TN, likely_TN = weights_TV.topk(num, dim=-1)
    top_TN = top_TN.double()
    left_TV = weights_TV.to(torch.float64, copy=True).scatter_(-1, likely_TN, 0.0)
    certain_TN = (top_TN >= _floor(left_TV.sum(-1, keepdim=True), top_TN)) & (top_TN > 0)
    left_TV.scatter_(-1, likely_TN, top_TN.masked_fill(certain_TN, 0.0)).cumsum_(-1)
    count_T1 = certain_TN.sum(-1, keepdim=True)
    free_T1, total_T1 = num - count_T1, left_TV[:, -1:]
    step_T1 = total_T1 / free_T1.clamp(min=1)
    place_N = torch.arange(num, device=weights_TV.device)
    targets_TN = torch.minimum((uniforms_T[:, None] + place_N) * step_T1, _below(total_T1))
    drawn_TN = _places(left_TV, targets_TN, right=True)
    drawn_TN = drawn_TN.masked_fill((place_N >= free_T1) | (total_T1 == 0), -1)
    moved_TN = drawn_TN.gather(-1, (place_N - count_T1).clamp(min=0))
    ids_TN = torch.where(certain_TN, likely_TN, moved_TN)
    padded_TN = ids_TN.new_full((len(ids_TN), places), -1)
    padded_TN[:, :num] = _by_weight(ids_TN, weights_TV)
    return padded_TN, step_T1[:, 0]


def _floor(rest_T1: Tensor, top_TN: Tensor) -> Tensor:
    """Return the least weight [T, 1] of an id that is certain.

    Args:
        rest_T1: weight of all ids but the N likeliest together.
        top_TN: weights of these, falling.
    """
    left_TN = rest_T1 + top_TN.flip(-1).cumsum(-1).flip(-1)
    num = top_TN.shape[1]
    free_N = torch.arange(num, 0, -1, device=top_TN.device)
    return (left_TN / free_N).amin(-1, keepdim=True) * (1 - SLACK * num)


def _below(values: Tensor) -> Tensor:
    """Return the next smaller number of each that is above 0."""
    return torch.nextafter(values, torch.zeros_like(values))


def _by_weight(ids_TN: Tensor, weights_TV: Tensor) -> Tensor:
    """Return ids by falling weight, equal ones by id, those of -1 last."""
    ids_TN = ids_TN.sort(-1).values
    weights_TN = weights_TV.gather(-1, ids_TN.clamp(min=0)).masked_fill(ids_TN < 0, -1.0)
    order_TN = weights_TN.sort(dim=-1, descending=True, stable=True).indices
    return ids_TN.gather(-1, order_TN)


def filled(ids_TN: Tensor, weights_TV: Tensor) -> Tensor:
    """Return samples with the lowest ids that have no weight in the places that are empty (-1)."""
    empty_TN = ids_TN < 0
    if not bool(empty_TN.any()):
        return ids_TN
    weightless_TV = (weights_TV <= 0).cumsum(-1)
    return torch.where(empty_TN, _places(weightless_TV, empty_TN.cumsum(-1)), ids_TN)


def _places(rising_TV: Tensor, values_TN: Tensor, *, right: bool = False) -> Tensor:
    """Return where values fall in rising numbers: a place that there is, even of NaN."""
    found_TN = torch.searchsorted(rising_TV, values_TN, right=right)
    return found_TN.clamp(max=rising_TV.shape[1] - 1)
