"""Prompt log-probabilities in a vLLM server's reply, as arrays that have been checked. Pure.

Promises: what is returned has as many positions as were sent, of the very ids that were sent, each
with k log-probabilities in rank order; everything else is a BadReply. Shapes: T tokens, K top-k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.server.client import BadReply
from pipeline.engines.server.replies import FORM_ERRORS, check_logprobs
from schemas.columns import Floats, Ids

MINUS_INF_OF_SERVERS = -9999.0
"""What vLLM writes for -inf, which JSON does not have."""

ORDER_ERROR = 1e-5
"""Nats by which rounding may put two ids into the wrong order."""

MASS_ERROR = 1e-2


@dataclass(frozen=True)
class TopRows:
    """The most likely ids of T positions, and the token that stands there.

    Attributes:
        ids: int32 [T, K] in rank order.
        logprobs: float64 [T, K].
        token_logprob: [T].
        token_rank: int32 [T], from 1.
    """

    ids: Ids
    logprobs: NDArray[np.float64]
    token_logprob: Floats
    token_rank: Ids


def top_rows(reply: Any, sent: Sequence[int], *, start: int, k: int, vocab_size: int) -> TopRows:
    """Return the positions of a reply's prompt log-probabilities from one on.

    Args:
        reply: the reply, or the choice in it, that has `prompt_logprobs`.
        sent: all ids that were sent.
        start: first position that is wanted, at least 1.
        k: ids that were asked for at each position.
        vocab_size: ids that the model has.

    Raises:
        BadReply: the reply is not what was asked for.
    """
    try:
        rows = reply["prompt_logprobs"]
        if len(rows) != len(sent):
            raise BadReply(f"scored {len(rows)} of {len(sent)} positions")
        if [int(next(iter(row))) for row in rows[1:]] != list(sent[1:]):
            raise BadReply("scored other tokens than those that were sent")
        return _checked(_flat(rows[start:]), k, vocab_size)
    except FORM_ERRORS as error:
        raise BadReply(f"sent prompt_logprobs of another form ({error})") from error


@dataclass(frozen=True)
class _Flat:
    """Entries of all positions joined; a position's first is the token that stands there."""

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    ranks: NDArray[np.float64]


def _flat(rows: Sequence[dict[str, dict[str, Any]]]) -> _Flat:
    entries = [entry for row in rows for entry in row.values()]
    return _Flat(
        counts=np.fromiter(map(len, rows), np.int64, len(rows)),
        ids=np.fromiter((int(key) for row in rows for key in row), np.int64, len(entries)),
        logprobs=np.array([entry["logprob"] for entry in entries], dtype=np.float64),
        ranks=np.array([entry["rank"] for entry in entries], dtype=np.float64),
    )


def _checked(flat: _Flat, k: int, vocab_size: int) -> TopRows:
    if not np.isin(flat.counts, (k, k + 1)).all():
        found = flat.counts[~np.isin(flat.counts, (k, k + 1))][0]
        raise BadReply(f"sent {found} log-probabilities of a position where {k} were asked for")
    check_logprobs(flat.logprobs)
    if not (flat.ranks >= 1).all():
        raise BadReply("sent a token without a rank, whose log-probability was a NaN")
    if not ((flat.ids >= 0) & (flat.ids < vocab_size)).all():
        raise BadReply(f"sent an id outside [0, {vocab_size}): it serves another model")
    first = np.cumsum(flat.counts) - flat.counts
    kept = np.ones(len(flat.ids), dtype=bool)
    kept[first[flat.counts > k]] = False
    ids, logprobs = flat.ids[kept].reshape(-1, k), flat.logprobs[kept].reshape(-1, k)
    order = np.argsort(flat.ranks[kept].reshape(-1, k), axis=1, kind="stable")
    ranks = np.take_along_axis(flat.ranks[kept].reshape(-1, k), order, axis=1)
    if not (ranks == np.arange(1, k + 1)).all():
        raise BadReply(f"sent other ranks than 1 to {k}")
    logprobs = np.take_along_axis(logprobs, order, axis=1)
    token, outside = flat.logprobs[first], flat.counts > k
    _check_rows(logprobs, token[outside] - logprobs[outside, -1], vocab_size)
    lowest = logprobs <= MINUS_INF_OF_SERVERS
    inside_rank = 1 + (logprobs > token[:, None]).sum(axis=1)
    return TopRows(
        ids=np.take_along_axis(ids, order, axis=1).astype(np.int32),
        logprobs=np.where(lowest, -np.inf, logprobs),
        token_logprob=np.where(token <= MINUS_INF_OF_SERVERS, -np.inf, token).astype(np.float32),
        token_rank=np.where(outside, flat.ranks[first], inside_rank).astype(np.int32),
    )


def _check_rows(logprobs_TK: NDArray[np.float64], above_T: NDArray[Any], vocab_size: int) -> None:
    """Make sure that top-k log-probabilities fall, and are those of a distribution.

    Args:
        logprobs_TK: in the order of their ranks.
        above_T: by how much tokens outside the top-k are likelier than its last.
        vocab_size: ids that the model has.
    """
    if (np.diff(logprobs_TK, axis=1) > ORDER_ERROR).any() or (above_T > ORDER_ERROR).any():
        raise BadReply("sent log-probabilities that are not in rank order")
    mass_T = np.exp(logprobs_TK).sum(axis=1)
    least = np.log(1.0 / vocab_size) - MASS_ERROR
    if (mass_T > 1 + MASS_ERROR).any() or (logprobs_TK[:, 0] < least).any():
        raise BadReply(
            "sent numbers that are no log-probabilities of a distribution: a NaN inside, or a "
            "server with another --logprobs-mode"
        )
