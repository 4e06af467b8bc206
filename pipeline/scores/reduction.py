"""Scores that follow from stored ones without a teacher: fewer ids, fewer signals. Pure.

What leaves the top-k goes to the tail, so that every position still sums to one. Shapes: T tokens,
K top-k, M tail buckets.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.buckets import bucket_of
from pipeline.scores.scores import Scores
from schemas.columns import Floats, Ids
from schemas.errors import ConfigError
from schemas.scoresignal import FURTHER, Signal


def check_derivable(source: Signal, target: Signal) -> None:
    """Make sure that scores with one signal can be made from scores with another.

    Raises:
        ConfigError: the target asks for something that was not kept.
    """
    for name, off in FURTHER.items():
        found, wanted = getattr(source, name), getattr(target, name)
        if wanted not in (found, off):
            raise ConfigError(f"{name} = {wanted} cannot be made from {found}: keep it, or {off}")
    if source.tail != target.tail or (target.entropy and not source.entropy):
        raise ConfigError(
            f"scores with a tail that is {source.tail} and {_entropy(source)} entropy cannot give "
            f"one that is {target.tail} and {_entropy(target)} entropy"
        )
    _check_sample(source, target)
    if target.candidates and target.uneven != source.uneven:
        raise ConfigError("candidates keep the numbers that positions have of them")
    if target.k > source.k:
        raise ConfigError(f"k = {target.k} is more than the {source.k} ids that are stored")
    stored, wanted = source.top_p or 1.0, target.top_p or 1.0
    if wanted > stored or (source.ragged and target.min_k > source.min_k):
        raise ConfigError(
            f"top_p = {wanted} with min_k = {target.min_k} cannot be made from top_p = {stored} "
            f"with min_k = {source.min_k}: ids that it needs were not kept"
        )


def _check_sample(source: Signal, target: Signal) -> None:
    """Make sure that a sample stays one of what is outside the top-k, and that something is kept.

    Raises:
        ConfigError: not so.
    """
    cut = (source.k, source.top_p, source.min_k) != (target.k, target.top_p, target.min_k)
    if target.sample and cut:
        raise ConfigError(
            f"a sample is of what lies outside k = {source.k}"
            f"{'' if source.top_p is None else f' and top_p = {source.top_p}'}: keep the top-k as "
            "it is, or leave the sample out"
        )
    if not (target.k or target.sample or target.candidates):
        raise ConfigError("nothing would be kept: without a top-k, keep the sample")


def _entropy(signal: Signal) -> str:
    return "an" if signal.entropy else "no"


def derive(scores: Scores, target: Signal) -> Scores:
    """Return scores with a smaller signal; `check_derivable` said that it can be.

    Args:
        scores: stored scores of all rows joined.
        target: what is kept.
    """
    ids_TK, logprobs_TK = scores.topk_ids, scores.topk_logprobs
    kept_TK = _kept(ids_TK, logprobs_TK, target)
    tail = scores.tail_logprobs
    if target.tail_buckets == 1 and tail.ndim == 2:
        tail = np.logaddexp.reduce(tail, axis=1)
    left_TK = np.where(kept_TK, -np.inf, logprobs_TK)
    width = min(target.k, ids_TK.shape[1])
    kept = {column.name for column in target.columns}
    changed = {
        "topk_ids": np.where(kept_TK, ids_TK, -1)[:, :width].astype(np.int32),
        "topk_logprobs": np.where(kept_TK, logprobs_TK, -np.inf)[:, :width].astype(np.float32),
        "tail_logprobs": _with(tail, ids_TK, left_TK),
    }
    same = {name: values for name, values in scores.arrays().items() if name in kept}
    return Scores.of({**same, **changed})


def _kept(ids_TK: Ids, logprobs_TK: Floats, target: Signal) -> NDArray[np.bool_]:
    rank_K = np.arange(ids_TK.shape[1])
    kept_TK = (ids_TK >= 0) & (rank_K < target.k)
    if target.top_p is not None:
        probs_TK = np.exp(logprobs_TK.astype(np.float64))
        before_TK = np.cumsum(probs_TK, axis=1) - probs_TK
        kept_TK &= (before_TK < target.top_p) | (rank_K < target.min_k)
    return kept_TK


def _with(tail: Floats, ids_TK: Ids, left_TK: Floats) -> Floats:
    """Return the tail with the mass of ids that left the top-k; the very same where none did."""
    mass_TK = np.exp(left_TK.astype(np.float64))
    total = np.exp(tail.astype(np.float64))
    moved = mass_TK.sum(axis=1)
    if tail.ndim == 1:
        total += moved
    else:
        token_TK = np.broadcast_to(np.arange(len(ids_TK))[:, None], ids_TK.shape)
        np.add.at(total, (token_TK, bucket_of(ids_TK.astype(np.int64), tail.shape[1])), mass_TK)
        moved = moved[:, None]
    with np.errstate(divide="ignore"):
        return np.where(moved > 0, np.log(total), tail).astype(np.float32)
