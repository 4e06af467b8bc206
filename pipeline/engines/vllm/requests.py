"""Requests to vLLM, for the engine in this process and for servers: every parameter is named."""

from collections.abc import Sequence
from typing import Any

from pipeline.engines.engine import Sampling
from pipeline.engines.vllm.worker import JOB, LIMIT
from schemas.errors import ConfigError

LEAST_TEMPERATURE = 0.01
"""vLLM samples at no lower temperature than this one, above 0."""

SCORING: dict[str, Any] = {"n": 1, "max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
"""Parameters of every request that scores: vLLM computes no prompt without sampling one token."""


def check_temperature(temperature: float) -> None:
    """Make sure that vLLM samples at a temperature.

    Raises:
        ConfigError: it would raise it.
    """
    if 0.0 < temperature < LEAST_TEMPERATURE:
        raise ConfigError(
            f"temperature = {temperature}: vLLM samples at {LEAST_TEMPERATURE} or above; raise it, "
            "or set the engine to 'hf'"
        )


def stop_parameters(strings: Sequence[str]) -> dict[str, Any]:
    """Return what vLLM is told of stop strings; nothing where there are none."""
    if not strings:
        return {}
    return {
        "stop": list(strings),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": True,  # leaves the text as the tokenizer writes it
    }


def shared_parameters(sampling: Sampling, seed: int) -> dict[str, Any]:
    """Return the parameters of one sample that vLLM and its servers name alike: all are given."""
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # the stop ids above are all there are
        **stop_parameters(sampling.stop_strings),
    }


def sampling_params(sampling: Sampling, seed: int) -> Any:
    """Return vLLM's parameters of one sample: everything named, nothing from the model's files."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **shared_parameters(sampling, seed),
        logprobs=sampling.candidates,
        flat_logprobs=True,
        detokenize=bool(sampling.stop_strings),
        extra_args={LIMIT: sampling.vocab_size},
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # each request has an object of its own
    )


def score_params(job: dict[str, Any]) -> Any:
    """Return the parameters of a request whose prompt the worker's extension is to score."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **SCORING,
        detokenize=False,
        skip_reading_prefix_cache=True,  # what a cache has is not computed, and gives no signal
        extra_args={JOB: job},
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # each request has an object of its own
    )
