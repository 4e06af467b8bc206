"""Samples as large as their tokens need: the ids of a unit go to its flat positions. Pure.

A threshold sample of many places becomes one of fewer, as if it had been drawn so: chances follow
from what is left (`inclusion`). How many places a token keeps depends on distributions alone, never
on what was drawn. Shapes: T tokens, N places.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.inclusion import inclusions
from schemas.columns import Floats, Ids

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]

LOWEST = -16.0
"""Log of the least threshold: what is below adds less to a gradient than rounding does."""

HALVINGS = 40
"""How often the range of thresholds is halved: to 1e-11 nats."""

ROUNDING = 1e-6
"""Share of a place that rounding may add to what a token needs."""


def needed_places(logprobs_TN: Floats, mean: int) -> Counts:
    """Return how many ids each token keeps, [T]: as few as bring its threshold to a common one.

    It is the least threshold at which the tokens keep `mean` ids on average. The noise of a token
    is its threshold times the mass below; so no other share of the ids has less of it.

    Args:
        logprobs_TN: of a threshold sample of N places, falling; -inf where fewer ids have mass.
        mean: ids of a token on average, at least 1.
    """
    mass_TN = np.exp(logprobs_TN.astype(np.float64))
    there_T = np.maximum((mass_TN > 0).sum(axis=1), 1)
    least_T = _threshold(mass_TN, there_T)
    before_TN = np.concatenate([np.zeros((len(mass_TN), 1)), mass_TN.cumsum(axis=1)], axis=1)

    def needed(log_threshold: float) -> Counts:
        tau = math.exp(log_threshold)
        certain_T = (mass_TN >= tau).sum(axis=1)
        left_T = 1.0 - np.take_along_axis(before_TN, certain_T[:, None], axis=1)[:, 0]
        count_T = certain_T + np.ceil(left_T / tau - ROUNDING)
        count_T = np.where(tau <= least_T, there_T, count_T)
        return np.asarray(np.clip(count_T, 1, there_T), np.int64)

    low, high = LOWEST, 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if needed(middle).sum() > mean * len(mass_TN):
            low = middle
        else:
            high = middle
    return needed(high)


def thinned(
    ids_TN: Ids, logprobs_TN: Floats, places_T: Counts, uniforms_T: Reals
) -> tuple[Ids, Floats]:
    """Return threshold samples of fewer places, as many as each token keeps.

    Args:
        ids_TN: of a threshold sample of N places, the likeliest first.
        logprobs_TN: of these ids, -inf where fewer ids have mass.
        places_T: ids that each token keeps.
        uniforms_T: float64 numbers in [0, 1), apart from those that the samples were drawn with.

    Returns:
        Ids and log-probabilities [T, N], the likeliest first; -1 and -inf where a token keeps
        fewer.
    """
    mass_TN = np.exp(logprobs_TN.astype(np.float64))
    there_TN = mass_TN > 0
    all_T = places_T >= there_TN.sum(axis=1)
    threshold_T1 = np.maximum(_threshold(mass_TN, places_T), 1e-300)[:, None]
    certain_TN = there_TN & (all_T[:, None] | (mass_TN >= threshold_T1))
    chances_TN = inclusions(logprobs_TN, np.zeros(len(mass_TN)))
    share_TN = np.where(there_TN & ~certain_TN, mass_TN / threshold_T1, 0.0)
    share_TN = np.divide(share_TN, chances_TN, out=np.zeros_like(share_TN), where=chances_TN > 0)
    free_T1 = (places_T - certain_TN.sum(axis=1))[:, None]
    kept_TN = certain_TN | _drawn(share_TN, free_T1, uniforms_T[:, None])
    order_TN = np.argsort(~kept_TN, axis=1, kind="stable")
    kept_TN, ids_TN, logprobs_TN = (
        np.take_along_axis(values, order_TN, axis=1) for values in (kept_TN, ids_TN, logprobs_TN)
    )
    return (
        np.where(kept_TN, ids_TN, -1).astype(np.int32),
        np.where(kept_TN, logprobs_TN, -np.inf).astype(np.float32),
    )


def _threshold(mass_TN: Reals, places_T: Counts) -> Reals:
    """Return the threshold [T] of so many places; masses fall, and the certain ones are all here.

    It is the first (1 - s_1 - … - s_m) / (n - m) that no later mass exceeds, the smallest of all.
    """
    left_TN = 1.0 - (mass_TN.cumsum(axis=1) - mass_TN)
    free_TN = places_T[:, None] - np.arange(mass_TN.shape[1])
    shares_TN = np.where(free_TN > 0, left_TN / np.maximum(free_TN, 1), np.inf)
    return np.asarray(np.maximum(shares_TN.min(axis=1), 0.0))


def _drawn(share_TN: Reals, free_T1: Counts, uniforms_T1: Reals) -> NDArray[np.bool_]:
    """Return which ids are drawn systematically: as many of each token as are free."""
    rising_TN = share_TN.cumsum(axis=1)
    total_T1 = rising_TN[:, -1:]
    rising_TN = rising_TN / np.where(total_T1 > 0, total_T1, 1.0) * free_T1 + uniforms_T1
    steps_TN = np.diff(np.floor(rising_TN), axis=1, prepend=np.floor(uniforms_T1))
    return np.asarray(steps_TN > 0) & (share_TN > 0)
