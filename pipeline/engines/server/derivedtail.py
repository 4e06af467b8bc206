"""Scores from top-k log-probabilities alone: the tail is what they leave of 1. Pure.

The mass of a tail is off by at most `mass_error`, which is what float32 loses in a sum over the
vocabulary; a mass that is no larger counts as none. Shapes: T tokens, K top-k.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.server.topk import TopRows
from pipeline.scores.reduction import derive
from pipeline.scores.scores import Scores
from schemas.scoresignal import Signal


def mass_error(vocab_size: int) -> float:
    """Return the largest error of a derived mass, as a probability."""
    return float(2.0**-21 + vocab_size * 2.0**-31)


def derived_scores(
    top: TopRows, signal: Signal, *, vocab_size: int, model_vocab: int
) -> Scores | None:
    """Return the scores that a signal keeps of the most likely ids; None where these are too few.

    Args:
        top: the most likely ids of all that the model has.
        signal: what is kept; its tail is derived.
        vocab_size: ids that may enter the top-k; the mass of ids above goes to the tail.
        model_vocab: ids that the model has.
    """
    known_TK = top.ids < vocab_size
    if (known_TK.sum(axis=1) < signal.k).any():
        return None
    first_TK = np.argsort(~known_TK, axis=1, kind="stable")
    with np.errstate(divide="ignore"):
        tail = np.log(_rest(top, model_vocab))
    whole = Scores(
        topk_ids=np.take_along_axis(top.ids, first_TK, axis=1),
        topk_logprobs=np.take_along_axis(top.logprobs, first_TK, axis=1).astype(np.float32),
        tail_logprobs=tail.astype(np.float32),
        token_logprob=top.token_logprob,
        token_rank=top.token_rank,
    )
    return derive(whole, signal)


def _rest(top: TopRows, model_vocab: int) -> NDArray[np.float64]:
    """Return the mass outside the top-k: what is left of 1, within what the others allow."""
    k = top.ids.shape[1]
    if k >= model_vocab:
        return np.zeros(len(top.ids))
    rest = -np.expm1(np.logaddexp.reduce(top.logprobs, axis=1))
    rest = np.minimum(rest, (model_vocab - k) * np.exp(top.logprobs[:, -1]))
    rest = np.where(rest > mass_error(model_vocab), rest, 0.0)
    outside = top.token_rank > k
    token = np.exp(top.token_logprob.astype(np.float64))
    return np.asarray(np.maximum(rest, np.where(outside, token, 0.0)))
