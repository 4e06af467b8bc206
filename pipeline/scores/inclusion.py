"""How likely an id was to be in a threshold sample, from what is stored of the sample. Pure.

For the ids of a sample Σ max(mass, threshold) is the mass that was sampled from, whichever ids were
drawn; so the threshold follows from their masses. Shapes: T positions, N ids of a sample.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.scores import Scores
from schemas.columns import Floats

Nats = NDArray[np.float64]


def log_thresholds(logprobs_TN: Floats, log_mass_T: NDArray[np.floating]) -> Nats:
    """Return the log of the threshold of each sample, -inf where its ids have all of the mass.

    With s the masses of a sample, falling, and M what was sampled from, it is the first
    (M - s_1 - … - s_m) / (n - m) that no later mass exceeds, which is the smallest of all.

    Args:
        logprobs_TN: of the ids of each sample, in any order; -inf where it has fewer.
        log_mass_T: log mass of the ids that were sampled from: 0 for a whole distribution.
    """
    mass_TN = -np.sort(-np.exp(logprobs_TN.astype(np.float64)), axis=1)
    left_TN = np.exp(log_mass_T.astype(np.float64))[:, None] - (mass_TN.cumsum(1) - mass_TN)
    free_TN = (mass_TN > 0).sum(axis=1, keepdims=True) - np.arange(mass_TN.shape[1])
    shares_TN = np.where(free_TN > 0, left_TN / np.maximum(free_TN, 1), np.inf)
    least_T = np.maximum(shares_TN.min(axis=1, initial=np.inf), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.where(np.isinf(least_T), 0.0, least_T)), dtype=np.float64)


def inclusions(logprobs_TN: Floats, log_mass_T: NDArray[np.floating]) -> Nats:
    """Return the probability with which each id came into its sample; 0 where there is none.

    Dividing an id's mass by it makes sums over a sample expect those over the whole distribution.
    The arguments are those of `log_thresholds`.
    """
    nats_TN = logprobs_TN.astype(np.float64)
    above_TN = nats_TN - np.maximum(log_thresholds(logprobs_TN, log_mass_T), -1e300)[:, None]
    return np.asarray(np.exp(np.minimum(above_TN, 0.0)), dtype=np.float64)


def sampled_mass(scores: Scores) -> Nats:
    """Return the log of the mass [T] that a sample was drawn from: that outside the top-k."""
    tail = scores.tail_logprobs.astype(np.float64)
    if not scores.topk_ids.shape[1]:
        return np.zeros(len(tail))
    return np.asarray(np.logaddexp.reduce(tail.reshape(len(tail), -1), axis=1), dtype=np.float64)


def whole_again(scores: Scores) -> Scores:
    """Return scores whose sample and threshold make up the mass outside the top-k.

    Rounding has left a little more or less, and where few ids have nearly all of the mass, that is
    more than all others have together: it is taken from the certain ids, a share from each.
    """
    logprobs_TN, threshold_T = scores.sample_logprobs, scores.sample_threshold
    if logprobs_TN is None or threshold_T is None:
        return scores
    certain_TN = logprobs_TN > threshold_T[:, None]
    free_T = np.isfinite(logprobs_TN).sum(axis=1) - certain_TN.sum(axis=1)
    held_T = np.exp(sampled_mass(scores)) - free_T * np.exp(threshold_T.astype(np.float64))
    sums_T = np.exp(np.where(certain_TN, logprobs_TN, -np.inf).astype(np.float64)).sum(axis=1)
    known_T = (sums_T > 0) & (held_T > 0)
    more_T = np.log(np.where(known_T, held_T, 1.0)) - np.log(np.where(known_T, sums_T, 1.0))
    scaled_TN = np.clip(logprobs_TN + more_T[:, None], threshold_T[:, None], 0.0)
    found_TN = np.where(certain_TN, scaled_TN, logprobs_TN).astype(np.float32)
    return replace(scores, sample_logprobs=found_TN)
