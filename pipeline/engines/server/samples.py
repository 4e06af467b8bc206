"""Sampling by a vLLM server: the request for one response, and its reply as a checked sample. Pure.

Promises: every parameter is named, nothing is left to the server's or the model's defaults; a reply
that is not what was asked for is a BadReply. Shapes: T tokens, N candidates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.server.client import BadReply
from pipeline.engines.server.replies import FORM_ERRORS, check_logprobs, parse
from pipeline.engines.server.topk import MINUS_INF_OF_SERVERS, ORDER_ERROR

TOKEN_ID = "token_id:"
"""What stands before an id where a server would give text."""

TextEnd = Callable[[NDArray[np.int64]], int | None]
"""Returns after how many tokens a response ends at a stop string, or None where it does not."""


def read_sample(
    data: bytes,
    sampling: Sampling,
    *,
    prompt_tokens: int,
    model_vocab: int,
    text_end: TextEnd = lambda ids: None,
) -> Sample:
    """Return the sample in a reply.

    Args:
        data: the reply, of either endpoint.
        sampling: what was asked for.
        prompt_tokens: tokens that the model read.
        model_vocab: ids that the model has.
        text_end: reads where the response ends at a stop string.

    Raises:
        BadReply: the reply is not what was asked for.
    """
    reply = parse(data)
    try:
        (choice,) = reply["choices"]
        if reply["usage"]["prompt_tokens"] != prompt_tokens:
            raise BadReply(
                f"read {reply['usage']['prompt_tokens']} prompt tokens of {prompt_tokens} "
                "that were sent"
            )
        ids = np.array(choice["token_ids"], dtype=np.int64)
        limit = min(sampling.vocab_size or model_vocab, model_vocab)
        if not ((ids >= 0) & (ids < limit)).all():
            raise BadReply(f"sampled an id outside [0, {limit})")
        reason = str(choice["finish_reason"])
        _check_end(ids, reason, sampling, text_end(ids))
        compact = "content" in choice["logprobs"]
        read = _compact_logprobs if compact else _completion_logprobs
        named, logprobs, top = read(choice["logprobs"], len(ids), sampling.candidates)
        if named != ids.tolist():
            raise BadReply("sent log-probabilities of other tokens than those that it sampled")
        return _sample(ids, reason, np.array(logprobs, dtype=np.float64), _within(top, limit))
    except FORM_ERRORS as error:
        raise BadReply(f"sent a sample of another form ({error})") from error


Top = tuple[NDArray[np.int64], NDArray[np.float64]]


def _within(top: Top, limit: int) -> Top:
    """Return candidates as checked ids and log-probabilities; those of -inf have any id."""
    ids, logprobs = top
    check_logprobs(logprobs)
    if (np.diff(logprobs, axis=1) > ORDER_ERROR).any():
        raise BadReply("sent candidates that are not in rank order")
    lowest = logprobs <= MINUS_INF_OF_SERVERS
    ids = np.where(lowest, np.minimum(ids, limit - 1), ids)
    if not ((ids >= 0) & (ids < limit)).all():
        raise BadReply(f"sent a candidate outside [0, {limit})")
    return ids, np.where(lowest, -np.inf, logprobs)


def _sample(ids: NDArray[np.int64], reason: str, logprobs: NDArray[np.float64], top: Top) -> Sample:
    if logprobs.shape != ids.shape:
        raise BadReply(f"sent {logprobs.size} log-probabilities of {len(ids)} tokens")
    check_logprobs(logprobs)
    if (logprobs <= MINUS_INF_OF_SERVERS).any():
        raise BadReply("sampled a token that has no probability")
    wanted = bool(top[0].shape[1])
    return Sample(
        ids=ids.astype(np.int32),
        logprobs=logprobs.astype(np.float32),
        finish_reason=reason,
        candidate_ids=top[0].astype(np.int32) if wanted else None,
        candidate_logprobs=top[1].astype(np.float32) if wanted else None,
    )


def _check_end(
    ids: NDArray[np.int64], reason: str, sampling: Sampling, text_end: int | None
) -> None:
    """Make sure that a response ends where it should: at its first stop, or at the limit."""
    stops = np.flatnonzero(np.isin(ids, sampling.stop_token_ids)) + 1
    ends = [*stops[:1].tolist(), *([] if text_end is None else [text_end])]
    end, expected = min(ends, default=sampling.max_new_tokens), "stop" if ends else "length"
    if len(ids) != end or reason != expected:
        raise BadReply(
            f"ended a response after {len(ids)} tokens by {reason!r}, expected {end} and "
            f"{expected!r}: start it with --generation-config vllm, so that no stop is its own"
            + (", and with the student's tokenizer" if sampling.stop_strings else "")
        )


def _compact_logprobs(found: Any, tokens: int, wanted: int) -> tuple[list[int], list[float], Top]:
    content = found["content"]
    rows = [sorted(entry["top_logprobs"], key=lambda t: t["rank"])[:wanted] for entry in content]
    if any(top["rank"] != rank for row in rows for rank, top in enumerate(row, 1)):
        raise BadReply("sent candidates with other ranks than 1 and up")
    top = (
        np.array([[t["token_id"] for t in row] for row in rows], np.int64).reshape(tokens, wanted),
        np.array([[t["logprob"] for t in row] for row in rows], float).reshape(tokens, wanted),
    )
    return [entry["token_id"] for entry in content], [e["logprob"] for e in content], top


def _completion_logprobs(
    found: Any, tokens: int, wanted: int
) -> tuple[list[int], list[float], Top]:
    named = [int(token.removeprefix(TOKEN_ID)) for token in found["tokens"]]
    top_ids = np.zeros((tokens, wanted), np.int64)
    top_logprobs = np.zeros((tokens, wanted))
    for row, entries in enumerate(found["top_logprobs"] if wanted else ()):
        pairs = list(entries.items())
        if len(pairs) > wanted:  # the sampled token stands first, and is none of the likeliest
            pairs = pairs[1:]
        pairs.sort(key=lambda pair: -pair[1])
        top_ids[row] = [int(token.removeprefix(TOKEN_ID)) for token, _ in pairs]
        top_logprobs[row] = [logprob for _, logprob in pairs]
    return named, found["token_logprobs"], (top_ids, top_logprobs)
