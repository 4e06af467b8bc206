"""How far two scorings of the same tokens are apart. Pure.

Shapes: T tokens, K top-k of one side, C ids that both sides keep, summed over positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.scores import Scores

Nats = NDArray[np.float64]

FLOOR_OF_LOGPROBS = -100.0
"""Log-probability that stands for −inf and whatever is lower."""


@dataclass(frozen=True)
class Gap:
    """How far two sets of log-probabilities of the same tokens are apart, nats."""

    mean: float
    max: float

    @property
    def words(self) -> str:
        """Return it for people."""
        return f"{self.mean:.1e} nats on average, {self.max:.1e} at most"

    def beyond(self, limit: float, dtype: str) -> str | None:
        """Return what would have passed, in words, where this is more than rounding; else None.

        The largest difference counts in float32, and their mean in 16 bits. NaN is more.

        Args:
            limit: nats.
            dtype: number format that was computed in.
        """
        found, kind = (self.max, "at most") if dtype == "float32" else (self.mean, "on average")
        return None if found <= limit else f"{limit:.1e} {kind} would pass for rounding in {dtype}"


@dataclass(frozen=True)
class Differences:
    """Two scorings of T tokens, position by position.

    Attributes:
        token: [T] absolute difference of the sampled token's log-probability.
        topk: [C] the same of each id that both sides keep.
        same: bool [T], whether both keep the same ids.
        kl: [T] KL(stored ‖ new) over the ids that both keep, and the rest as one.
    """

    token: Nats
    topk: Nats
    same: NDArray[np.bool_]
    kl: Nats


@dataclass(frozen=True)
class Spread:
    """Absolute differences in nats."""

    mean: float
    p99: float
    max: float


@dataclass(frozen=True)
class Drift:
    """How far stored scores are from new ones; everything in nats but the share."""

    token_logprob: Spread
    topk_logprobs: Spread
    """Over the ids that both keep."""
    same_topk: float
    """Share of positions where both keep the same ids."""
    kl_mean: float
    kl_max: float


def gap_of(ours: NDArray[np.floating], reference: NDArray[np.floating]) -> Gap:
    """Return how far log-probabilities are from those of a reference; NaN where one is NaN."""
    apart = np.abs(ours - reference)
    return Gap(float(apart.mean()), float(apart.max()))


def differences(stored: Scores, new: Scores) -> Differences:
    """Return how far two scorings of the same tokens are apart, by their top-k.

    Where they have none, a sample is compared in its place.
    """
    stored, new = _with_topk(stored), _with_topk(new)
    mine, other = _common(stored.topk_ids, new.topk_ids)
    p, q = _floored(stored.topk_logprobs), _floored(new.topk_logprobs)
    counts = [(ids >= 0).sum(axis=1) for ids in (stored.topk_ids, new.topk_ids)]
    shared = np.bincount(mine // max(stored.topk_ids.shape[1], 1), minlength=len(p))
    return Differences(
        token=np.abs(_floored(stored.token_logprob) - _floored(new.token_logprob)),
        topk=np.abs(p.reshape(-1)[mine] - q.reshape(-1)[other]),
        same=(counts[0] == shared) & (counts[1] == shared),
        kl=_kl(stored, new, mine, other),
    )


def drift_of(parts: Sequence[Differences]) -> Drift:
    """Return the figures of some parts of a sample; at least one has a token."""
    kl = np.concatenate([part.kl for part in parts])
    return Drift(
        token_logprob=_spread(np.concatenate([part.token for part in parts])),
        topk_logprobs=_spread(np.concatenate([part.topk for part in parts])),
        same_topk=float(np.concatenate([part.same for part in parts]).mean()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
    )


def _with_topk(scores: Scores) -> Scores:
    """Return scores with a sample as their top-k, where they have none."""
    ids, logprobs = scores.sample_ids, scores.sample_logprobs
    if scores.topk_ids.shape[1] or ids is None or logprobs is None:
        return scores
    left = 1.0 - np.exp(logprobs.astype(np.float64)).sum(axis=1)
    tail = np.log(np.maximum(left, np.exp(FLOOR_OF_LOGPROBS))).astype(np.float32)
    return replace(scores, topk_ids=ids, topk_logprobs=logprobs, tail_logprobs=tail)


def _common(
    mine: NDArray[np.int32], other: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the flat places of the ids that both sides keep at a position, on either side."""
    base = int(max(mine.max(initial=0), other.max(initial=0))) + 1
    (key, place), (other_key, other_place) = (_keys(ids, base) for ids in (mine, other))
    _, first, second = np.intersect1d(key, other_key, assume_unique=True, return_indices=True)
    return place[first], other_place[second]


def _keys(ids: NDArray[np.int32], base: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a number for each kept position and id, and its flat place."""
    kept = np.flatnonzero(ids >= 0)
    return kept // max(ids.shape[1], 1) * base + ids.reshape(-1)[kept], kept


def _kl(stored: Scores, new: Scores, mine: NDArray[np.int64], other: NDArray[np.int64]) -> Nats:
    """Return KL(stored ‖ new) of each position; both sides are normalised, as the losses do."""
    p, p_rest = _masses(stored, mine)
    q, q_rest = _masses(new, other)
    row = mine // max(stored.topk_ids.shape[1], 1)
    tokens = len(p_rest)
    total_p = np.bincount(row, weights=p, minlength=tokens) + p_rest
    total_q = np.bincount(row, weights=q, minlength=tokens) + q_rest
    p, q = p / total_p[row], q / total_q[row]
    kl = np.bincount(row, weights=_terms(p, q), minlength=tokens)
    return np.maximum(kl + _terms(p_rest / total_p, q_rest / total_q), 0.0)


def _masses(scores: Scores, places: NDArray[np.int64]) -> tuple[Nats, Nats]:
    """Return the probabilities of the ids that both keep, and of all others at each position."""
    mass = np.exp(scores.topk_logprobs.astype(np.float64))
    others = mass.copy()
    others.reshape(-1)[places] = 0.0
    tail = np.exp(scores.tail_logprobs.astype(np.float64)).reshape(len(mass), -1)
    return mass.reshape(-1)[places], others.sum(axis=1) + tail.sum(axis=1)


def _terms(p: Nats, q: Nats) -> Nats:
    least = np.exp(FLOOR_OF_LOGPROBS)
    found: Nats = p * (np.log(np.maximum(p, least)) - np.log(np.maximum(q, least)))
    return found


def _floored(logprobs: NDArray[np.float32]) -> Nats:
    return np.maximum(logprobs.astype(np.float64), FLOOR_OF_LOGPROBS)


def _spread(values: Nats) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0)
    return Spread(float(values.mean()), float(np.quantile(values, 0.99)), float(values.max()))
