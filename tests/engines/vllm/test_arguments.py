"""What vLLM is started with changes no number: budgets, orders, small caches, split layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.engines.vllm.arguments import cpu_cache_bytes
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.config.engines import VllmSection
from schemas.errors import CapacityError
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
from tests.support.vllmgolden import ATOL, long_rows, opened


@pytest.mark.slow
def test_a_model_whose_layers_are_split_and_spread_over_workers_is_the_same_model(
    make: Callable[..., Tiny],
) -> None:
    model, (prompts, responses) = make(), rows(4)
    split = VllmSection(tensor_parallel_size=2, pipeline_parallel_size=2)
    with opened(model, "score", batch_tokens=64, vllm=split) as engine:
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
        samples = generate(engine, prompts, PLAIN, range(4))
        workers = psutil.Process().children(recursive=True)
    assert len(workers) >= 4
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected, atol=ATOL)
    for prompt, sample in zip(prompts, samples, strict=True):
        logprobs = reference_logprobs(model.logits(prompt, sample.ids), PLAIN)
        own = logprobs[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)


def shuffled(
    engine: VllmEngine, expected: Scores, prompts: list[Ids], responses: list[Ids]
) -> None:
    """Score the rows in three orders and compare."""
    lengths = [len(r) for r in responses]
    ends = np.cumsum(lengths)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(prompts))
        tokens = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in order])
        found = engine.score(
            [prompts[i] for i in order],
            [responses[i] for i in order],
            signal=Signal(3),
            vocab_size=V,
        )
        assert_same_scores(found, expected.take(tokens), atol=ATOL)


def test_prompts_above_the_budget_are_sampled_as_below_it(make: Callable[..., Tiny]) -> None:
    model, (prompts, _) = make(), long_rows(5, 30, 1)
    found = []
    for budget in (16, 4096):
        with opened(model, batch_tokens=budget) as engine:
            found.append(generate(engine, prompts, PLAIN, range(5)))
    for small, large in zip(*found, strict=True):
        np.testing.assert_array_equal(small.ids, large.ids)
        np.testing.assert_allclose(small.logprobs, large.logprobs, atol=ATOL)


@pytest.mark.parametrize(
    "settings",
    [
        {"use": "score", "batch_tokens": 8, "logit_chunk_mb": 0.01},
        {"logit_chunk_mb": 1e-6, "vllm": VllmSection(max_num_seqs=2)},
    ],
    ids=["chunked-prefill", "few-at-once"],
)
def test_scores_do_not_depend_on_order_batches_or_chunks(
    make: Callable[..., Tiny], settings: dict[str, Any]
) -> None:
    model, (prompts, responses) = make(), rows(25)
    expected = reference_scores(model, prompts, responses, k=3, vocab_size=V)
    with opened(model, **settings) as engine:
        shuffled(engine, expected, prompts, responses)


def test_scores_and_samples_survive_preemption(
    make: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(max_position_embeddings=1024)
    prompts, responses = long_rows(6, 200, 100)
    small = VllmSection(kv_cache_gb=cache_gb(model, tokens=9 * 128))
    sampling = replace(PLAIN, stop_token_ids=(), max_new_tokens=300)
    with opened(model, max_tokens=500, vllm=small) as engine:
        preempted = count_preemptions(engine, monkeypatch)
        samples = generate(engine, prompts, sampling, range(6))
        assert preempted, "the cache was large enough: a weak test"
        shuffled(
            engine,
            reference_scores(model, prompts, responses, k=3, vocab_size=V),
            prompts,
            responses,
        )
    for prompt, sample in zip(prompts, samples, strict=True):
        logprobs = reference_logprobs(model.logits(prompt, sample.ids), sampling)
        expected = logprobs[np.arange(300), sample.ids]
        np.testing.assert_allclose(sample.logprobs, expected, atol=ATOL)


def cache_gb(model: Tiny, *, tokens: int) -> float:
    """Return the GiB of a cache of so many tokens."""
    shape = model.reference.config
    each = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * 4
    return float(each * tokens / (1 << 30))


def count_preemptions(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    core = engine._host._llm.llm_engine.engine_core.engine_core
    original, seen = core.scheduler._preempt_request, list[Any]()

    def count(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(core.scheduler, "_preempt_request", count)
    return seen


def test_a_cache_that_holds_no_sequence_is_refused(make: Callable[..., Tiny]) -> None:
    shape = make().reference.config
    with pytest.raises(CapacityError, match="key-value cache"):
        cpu_cache_bytes(shape, "float32", tokens=1, least=1 << 40)
    few = cpu_cache_bytes(shape, "float32", tokens=128, least=128)
    assert few < cpu_cache_bytes(shape, "float32", tokens=12800, least=128)


def test_a_model_without_attention_has_a_cache_too() -> None:
    from transformers import Mamba2Config

    assert cpu_cache_bytes(Mamba2Config(), "float32", tokens=128, least=128) > 0
