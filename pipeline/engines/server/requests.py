"""Requests to a vLLM server: path and body for either endpoint. Pure."""

from typing import Any

from pipeline.engines.engine import Sampling
from pipeline.engines.server.client import MOST_BYTES
from pipeline.engines.vllm.requests import SCORING, shared_parameters


def scoring_parameters(k: int) -> dict[str, Any]:
    """Return the parameters of a request for the k most likely ids of every position."""
    return {**SCORING, "prompt_logprobs": k}


COMPACT, COMPLETIONS = "/inference/v1/generate", "/v1/completions"

FORBIDDING_BIAS = -100.0
"""The lowest that vLLM adds to a logit on request. Its highest temperature is 2, where
this leaves an id exp(-50) of what it had: nothing in float32."""

MOST_BIASED = 4096
"""Ids that are forbidden one by one; of more, the others are allowed one by one."""


ENTRY_BYTES = 512
"""Bytes that the log-probability of one id may take, with its number, its rank and its text."""


def reply_limit(tokens: int, ids_each: int) -> int:
    """Return the most bytes of a reply that holds some ids of some tokens."""
    return MOST_BYTES + tokens * (ids_each + 2) * ENTRY_BYTES  # and the token itself, and its text


def request_of(
    ids: list[int], parameters: dict[str, Any], *, model: str, compact: bool
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request.

    Args:
        ids: what the model reads.
        parameters: fields that both endpoints know.
        model: name of the model.
        compact: whether the endpoint of token ids is asked, or the older one of completions.
    """
    if compact:
        held = {**parameters, "detokenize": "stop" in parameters}
        return COMPACT, {"model": model, "token_ids": ids, "sampling_params": held}
    given = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return COMPLETIONS, {"model": model, "prompt": ids, **given, **parameters}


def sampling_parameters(
    sampling: Sampling, seed: int, *, model_vocab: int, compact: bool
) -> dict[str, Any]:
    """Return the parameters of one sample: everything named."""
    asked = sampling.candidates + int(compact and sampling.candidates > 0)
    return {
        **shared_parameters(sampling, seed),
        "logprobs": min(asked, model_vocab),
        **_mask(sampling, model_vocab),
    }


def _mask(sampling: Sampling, model_vocab: int) -> dict[str, Any]:
    """Return what keeps a server from sampling ids beyond the tokenizer's."""
    limit = model_vocab if sampling.vocab_size is None else sampling.vocab_size
    if limit >= model_vocab:
        return {}
    if model_vocab - limit <= MOST_BIASED:
        return {"logit_bias": {str(i): FORBIDDING_BIAS for i in range(limit, model_vocab)}}
    return {"allowed_token_ids": list(range(limit))}
