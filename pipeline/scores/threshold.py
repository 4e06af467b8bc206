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
    floor_T1 = _floor(weights_TV.scatter(-1, likely_TN, 0.0), top_TN)
    certain_TN = (top_TN >= floor_T1) & (top_TN > 0)
    left_TV = weights_TV.masked_fill(weights_TV >= floor_T1, 0.0).cumsum(-1, dtype=torch.float64)
    count_T1 = certain_TN.sum(-1, keepdim=True)
    free_T1, total_T1 = num - count_T1, left_TV[:, -1:]
    step_T1 = total_T1 / free_T1.clamp(min=1)
    place_N = torch.arange(num, device=weights_TV.device)
    targets_TN = torch.minimum((uniforms_T[:, None] + place_N) * step_T1, _below(total_T1))
    drawn_TN = torch.searchsorted(left_TV, targets_TN, right=True)
    drawn_TN = drawn_TN.masked_fill((place_N >= free_T1) | (total_T1 == 0), -1)
    moved_TN = drawn_TN.gather(-1, (place_N - count_T1).clamp(min=0))
    ids_TN = torch.where(certain_TN, likely_TN, moved_TN)
    padded_TN = ids_TN.new_full((len(ids_TN), places), -1)
    padded_TN[:, :num] = _by_weight(ids_TN, weights_TV)
    return padded_TN, step_T1[:, 0]


def _floor(rest_TV: Tensor, top_TN: Tensor) -> Tensor:
    """Return the least weight [T, 1] of an id that is certain.

    Args:
        rest_TV: weights of all ids but the N likeliest.
        top_TN: weights of these, falling.
    """
    left_TN = top_TN.double().flip(-1).cumsum(-1).flip(-1)
    left_TN += rest_TV.sum(-1, keepdim=True, dtype=torch.float64)
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
    return torch.where(empty_TN, torch.searchsorted(weightless_TV, empty_TN.cumsum(-1)), ids_TN)
