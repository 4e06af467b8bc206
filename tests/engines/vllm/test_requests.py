"""What is asked of vLLM: sampling without the model's own defaults, and ends by text."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.engine import Sampling
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.engines.vllm.requests import stop_parameters
from pipeline.models.stopstrings import StopStrings
from pipeline.models.tokenizer import model_tokenizer
from pipeline.quickstart.addition import EOS
from schemas.columns import Ids
from schemas.errors import ConfigError
from tests.support.golden import PLAIN, Tiny, V, generate, reference_logprobs, rows
from tests.support.stopgolden import KINDS as KINDS_OF_TEXT
from tests.support.stopgolden import assert_ends, batch_ends, cases, prompt_of, tokenizer_of
from tests.support.vllmgolden import ATOL, opened

Held = tuple[Tiny, VllmEngine]


@pytest.fixture(scope="module")
def plain(make: Callable[..., Tiny]) -> Iterator[Held]:
    """Return a model whose files name sampling parameters, and its engine that reads text."""
    model = make(seed=5)
    (model.folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0}'
    )
    with opened(model, max_tokens=500, reads_text=True) as engine:
        yield model, engine


def test_first_tokens_follow_the_models_distribution(plain: Held) -> None:
    draws, prompt, (model, engine) = 3000, rows(1)[0][0], plain
    sampling = replace(PLAIN, max_new_tokens=1, temperature=0.7)
    samples = generate(engine, [prompt] * draws, sampling, range(draws))
    counts = np.bincount([int(s.ids[0]) for s in samples], minlength=V)
    logits = model.logits(prompt, samples[0].ids)
    expected = np.exp(reference_logprobs(logits, sampling))[0] * draws
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    statistic = ((observed - predicted) ** 2 / predicted).sum()
    freedom = len(observed) - 1
    assert freedom > 5
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    plain: Held, temperature: float
) -> None:
    (model, engine), prompts = plain, rows(60)[0]
    sampling = replace(PLAIN, temperature=temperature, max_new_tokens=12, candidates=3)
    tokenizer, by_text = model_tokenizer(model.source), 0
    long = generate(engine, prompts[:5], sampling, range(5))
    strings = {str(tokenizer.decode(sample.ids[2:4])) for sample in long} - {""}
    sampling = replace(sampling, stop_strings=tuple(sorted(strings)))
    samples = generate(engine, prompts, sampling, range(60))
    for prompt, sample in zip(prompts, samples, strict=True):
        assert_ends(tokenizer, prompt, sample, sampling)
        processed = reference_logprobs(model.logits(prompt, sample.ids), sampling)
        own = processed[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)
        assert sample.candidate_logprobs is not None
        top = -np.sort(-processed, axis=-1)[:, :3]
        np.testing.assert_allclose(sample.candidate_logprobs, top, atol=ATOL)
        by_text += sample.finish_reason == "stop" and sample.ids[-1] != EOS
    assert by_text > 5, "a weak test"
    if temperature == 0.0:
        for sample, same in zip(
            samples, generate(model.engine(), prompts, sampling, range(60)), strict=True
        ):
            np.testing.assert_array_equal(sample.ids, same.ids)
            assert sample.finish_reason == same.finish_reason


def test_an_engine_names_its_vocabulary_and_its_context(plain: Held) -> None:
    engine = plain[1]
    assert (engine.name, engine.vocab_size, engine.context_length) == ("vllm", V, 128)
    assert engine.generate([], [], PLAIN) == []
    assert "vllm" in engine.version and "torch" in engine.version


def test_a_temperature_that_vllm_would_raise_is_refused(plain: Held) -> None:
    with pytest.raises(ConfigError, match=r"0\.001.*0\.01"):
        plain[1].generate([rows(1)[0][0]], [1], replace(PLAIN, temperature=0.001))


def test_sampling_defaults_of_the_models_files_are_not_used(
    plain: Held,
) -> None:
    (model, engine), prompts = plain, [rows(1)[0][0]] * 20
    sampling: Sampling = replace(PLAIN, max_new_tokens=4)
    samples = generate(engine, prompts, sampling, range(20))
    assert len({s.ids.tobytes() for s in samples}) > 10
    for sample in samples:
        expected = reference_logprobs(model.logits(prompts[0], sample.ids), sampling)
        mine = expected[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, mine, atol=ATOL)


@pytest.mark.parametrize("kind", KINDS_OF_TEXT)
@given(data=st.data())
@settings(max_examples=40)
def test_text_is_read_as_vllm_reads_it(kind: str, data: st.DataObject) -> None:
    responses, strings = data.draw(cases(kind))
    tokenizer, prompt = tokenizer_of(kind), prompt_of(kind)
    stops = StopStrings(tokenizer, strings)
    expected = [vllm_end(tokenizer, prompt, ids, strings) for ids in responses]
    assert [stops.end(prompt, ids) for ids in responses] == expected
    assert batch_ends(stops, prompt, responses) == expected


def vllm_end(tokenizer: Any, prompt: Ids, response: Ids, strings: list[str]) -> int | None:
    """Return after how many tokens vLLM ends a response by its text."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    params = SamplingParams(detokenize=True, **stop_parameters(strings))
    request: Any = SimpleNamespace(
        request_id="0", sampling_params=params, prompt_token_ids=prompt.tolist()
    )
    reader = FastIncrementalDetokenizer(tokenizer, request)
    ends = (n for n, i in enumerate(response.tolist(), 1) if reader.update([i], False))
    return next(ends, None)
