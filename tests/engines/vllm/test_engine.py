"""The vLLM engine, real and on the CPU, against full forwards of each kind of model."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.engines.vllm.engine import VllmEngine
from pipeline.quickstart.addition import EOS
from schemas.scoresignal import Signal
from tests.support.golden import (
    PLAIN,
    Tiny,
    V,
    assert_same_scores,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.owngolden import CHANGES, PLACES, assert_own_samples
from tests.support.vllmgolden import ATOL, opened

KINDS = [(arch, tied) for arch in ("qwen3", "llama") for tied in (True, False)]
Held = tuple[Tiny, VllmEngine]
FULL = Signal(4, tail_buckets=3, candidates=2, draws=5, sample=4, temperatures=(0.5, 2.0))
SAMPLED = Signal(0, candidates=2, sample=4)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def held(request: pytest.FixtureRequest, make: Callable[..., Tiny]) -> Iterator[Held]:
    """Return each kind of model in turn, with its engine; a process holds one at a time."""
    model = make(*request.param)
    with opened(model) as engine:
        yield model, engine


def test_scores_equal_a_full_forward_of_each_row(held: Held) -> None:
    (model, engine), (prompts, responses) = held, rows()
    for k in (1, 4, V):
        found = engine.score(prompts, responses, signal=Signal(k), vocab_size=V)
        expected = reference_scores(model, prompts, responses, k=k, vocab_size=V)
        assert_same_scores(found, expected, atol=ATOL)
        if k == V:
            assert np.isneginf(found.tail_logprobs).all()
    assert expected.entropy is not None
    assert expected.entropy.min() < math.log(V) - 0.3, "the model is flat: a weak test"


def test_every_signal_is_that_of_the_reference_engine(held: Held) -> None:
    (model, engine), (prompts, responses) = held, rows(20)
    random = np.random.default_rng(1)
    candidates = [random.integers(0, V, (len(r), 2)).astype(np.int32) for r in responses]
    for signal in (FULL, Signal(6, top_p=0.8, min_k=2, candidates=2), SAMPLED):
        given: dict[str, Any] = {"signal": signal, "vocab_size": V - 2, "candidates": candidates}
        found = engine.score(prompts, responses, **given)
        expected = model.engine().score(prompts, responses, **given)
        mine = found.arrays()
        assert mine.keys() == expected.arrays().keys()
        for name, value in expected.arrays().items():
            assert mine[name].dtype == value.dtype
            np.testing.assert_allclose(mine[name], value, rtol=0, atol=ATOL, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.9},
        {"temperature": 0.0},
        {"vocab_size": V - 3},
    ],
    ids=str,
)
def test_logprobs_are_of_the_distribution_that_was_sampled(
    held: Held, changes: dict[str, Any]
) -> None:
    (model, engine), prompts = held, rows(9)[0]
    sampling = replace(PLAIN, candidates=3, **changes)
    samples = generate(engine, prompts, sampling, range(9))
    limit = sampling.vocab_size or V
    for prompt, sample in zip(prompts, samples, strict=True):
        processed = reference_logprobs(model.logits(prompt, sample.ids)[:, :limit], sampling)
        expected = processed[np.arange(len(sample.ids)), sample.ids]
        assert sample.logprobs.dtype == np.float32 and sample.ids.dtype == np.int32
        np.testing.assert_allclose(sample.logprobs, expected, atol=ATOL)
        if sampling.temperature == 0.0:
            assert (expected == processed.max(-1)).all()
        assert sample.candidate_ids is not None and sample.candidate_logprobs is not None
        top = -np.sort(-processed, axis=-1)[:, :3]
        np.testing.assert_allclose(sample.candidate_logprobs, top, atol=ATOL)
        chosen = np.take_along_axis(processed, sample.candidate_ids.astype(np.int64), -1)
        possible = np.isfinite(top)
        np.testing.assert_allclose(chosen[possible], top[possible], atol=ATOL)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_students_own_sample_is_of_what_each_token_was_drawn_from(
    held: Held, changes: dict[str, Any]
) -> None:
    (model, engine), sampling = held, replace(PLAIN, sample=PLACES, **changes)
    assert_own_samples(model, engine, rows(9)[0], sampling, atol=ATOL)


def test_a_sequence_with_an_own_sample_may_fill_the_whole_context(held: Held) -> None:
    (model, engine), sampling = held, replace(PLAIN, sample=PLACES, stop_token_ids=())
    length = engine.context_length - sampling.max_new_tokens
    prompt = np.random.default_rng(0).integers(1, V, length).astype(np.int32)
    assert_own_samples(model, engine, [prompt], sampling, atol=ATOL)


def test_a_row_draws_the_same_tokens_alone_and_in_any_batch(held: Held) -> None:
    (_, engine), prompts = held, rows(9)[0]
    alone = [generate(engine, prompts, PLAIN, range(9))[i] for i in range(9)]
    assert len({s.ids.tobytes() for s in alone}) > 5
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(9)
        for mine, other in zip(generate(engine, prompts, PLAIN, order), alone, strict=True):
            np.testing.assert_array_equal(mine.ids, other.ids)
            np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=ATOL)
            assert mine.finish_reason == other.finish_reason


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(
    held: Held,
) -> None:
    stops = (EOS, 7, 9)
    sampling = replace(PLAIN, stop_token_ids=stops, max_new_tokens=5)
    samples = generate(held[1], rows(60)[0], sampling, range(60))
    reasons = [(len(s.ids) == 5, s.finish_reason) for s in samples]
    assert set(reasons) == {(True, "stop"), (True, "length"), (False, "stop")}
    for sample in samples:
        ids = sample.ids.tolist()
        assert 1 <= len(ids) == len(sample.logprobs) <= 5
        assert not set(ids[:-1]) & set(stops)
        assert (ids[-1] in stops) == (sample.finish_reason == "stop")
