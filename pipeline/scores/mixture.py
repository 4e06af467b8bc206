"""The mixture of several teachers' stored scores, over the union of their ids. Pure.

An id that a teacher did not keep has its mass in that teacher's tail; there it stays, so that a
position sums to one and an id's mass is never overstated. Shapes: T tokens, K top-k, W all ids.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.scores import Scores
from schemas.columns import Floats, Ids
from schemas.errors import ConfigError
from schemas.scoresignal import Signal

WEIGHT_ERROR = 1e-6
"""Largest difference of the sum of weights from one."""


def check_mixable(signals: Sequence[Signal], weights: Sequence[float]) -> Signal:
    """Return the signal of a mixture.

    Raises:
        ConfigError: the weights do not fit, or a source keeps another number of ids from position
            to position.
    """
    if len(weights) != len(signals) or not all(0 < weight <= 1 for weight in weights):
        raise ConfigError(
            f"a mixture of {len(signals)} scorers needs as many positive weights, "
            f"none above 1; found {list(weights)}"
        )
    if abs(sum(weights) - 1) > WEIGHT_ERROR:
        raise ConfigError(f"the weights of a mixture sum to 1; found {sum(weights)}")
    if any(signal.ragged for signal in signals):
        raise ConfigError("scores with top_p cannot be mixed: mix the ones that they were made of")
    if not all(signal.k for signal in signals):
        raise ConfigError("scores without a top-k cannot be mixed: their samples have other ids")
    derived = any(signal.tail == "derived" for signal in signals)
    return Signal(max(signal.k for signal in signals), tail="derived" if derived else "exact")


def mix(scores: Sequence[Scores], weights: Sequence[float], *, k: int) -> Scores:
    """Return the scores of a mixture of distributions.

    The sampled token's log-probability is exact; its rank and the entropy are lower bounds, since
    ids that nobody kept are one in them.

    Args:
        scores: of the same tokens by each teacher.
        weights: of the teachers, summing to one.
        k: ids to keep, at most the largest number of a teacher.
    """
    ids_TW = np.concatenate([one.topk_ids for one in scores], axis=1)
    mass_TW = np.concatenate(
        [w * _exp(one.topk_logprobs) for one, w in zip(scores, weights, strict=True)], axis=1
    )
    ids_TW, mass_TW = _summed(ids_TW, mass_TW)
    order_TW = np.argsort(-mass_TW, axis=1, kind="stable")
    ids_TW = np.take_along_axis(ids_TW, order_TW, axis=1)
    mass_TW = np.maximum(np.take_along_axis(mass_TW, order_TW, axis=1), 0)
    tails = [np.logaddexp.reduce(o.tail_logprobs.reshape(len(ids_TW), -1), axis=1) for o in scores]
    share = np.asarray(weights)[:, None]
    tail = (share * _exp(np.stack(tails))).sum(axis=0) + mass_TW[:, k:].sum(axis=1)
    token = (share * _exp(np.stack([one.token_logprob for one in scores]))).sum(axis=0)
    parts = np.concatenate([mass_TW[:, :k], tail[:, None]], axis=1)
    return Scores(
        topk_ids=np.ascontiguousarray(ids_TW[:, :k], np.int32),
        topk_logprobs=_log(mass_TW[:, :k]),
        tail_logprobs=_log(tail),
        token_logprob=_log(token),
        token_rank=1 + (mass_TW > token[:, None] * (1 + 1e-9)).sum(axis=1, dtype=np.int32),
        entropy=-(parts * np.where(parts > 0, _log(parts), 0)).sum(axis=1, dtype=np.float32),
    )


def _summed(ids_TW: Ids, mass_TW: NDArray[np.float64]) -> tuple[Ids, NDArray[np.float64]]:
    """Return each id of a position once with its whole mass; its repeats have -1, to sort last."""
    order = np.argsort(ids_TW, axis=1, kind="stable")
    ids = np.take_along_axis(ids_TW, order, axis=1)
    mass = np.take_along_axis(mass_TW, order, axis=1)
    new = np.ones(ids.shape, dtype=bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    group = np.flatnonzero(new)
    sums = np.add.reduceat(mass.reshape(-1), group)
    total = np.full(mass.size, -1.0)
    total[group] = sums
    return ids, total.reshape(mass.shape)


def _exp(logprobs: Floats) -> NDArray[np.float64]:
    return np.exp(logprobs.astype(np.float64))


def _log(mass: NDArray[np.float64]) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(mass).astype(np.float32)
