"""The reference engine against a full forward of one row at a time: no padding, chunks or cache."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.head import Head
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import model_tokenizer
from pipeline.quickstart.addition import EOS
from pipeline.scores.scores import Scores
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from schemas.randomness import derived_seed
from schemas.scoresignal import Signal
from tests.support.golden import (
    KINDS,
    PLAIN,
    Models,
    Tiny,
    V,
    assert_same_scores,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.owngolden import CHANGES, PLACES, assert_own_samples
from tests.support.stopgolden import assert_ends
from tests.support.tiny import make_model


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a maker of models, each made once."""
    return Models(tmp_path_factory.mktemp)


@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize(("arch", "tied"), KINDS)
def test_scores_equal_a_full_forward_of_each_row(
    make: Models, arch: str, tied: bool, k: int
) -> None:
    model, (prompts, responses) = make(arch, tied), rows()
    found = model.engine().score(prompts, responses, signal=Signal(k), vocab_size=V)
    expected = reference_scores(model, prompts, responses, k=k, vocab_size=V)
    assert_same_scores(found, expected)
    assert expected.entropy is not None
    assert expected.entropy.min() < math.log(V) - 0.3, "the model is flat: a weak test"
    if k == V:
        assert np.isneginf(found.tail_logprobs).all()


@pytest.mark.parametrize(
    ("batch_tokens", "chunk_tokens"), [(1, 1024), (40, 3), (10_000, 1), (10_000, 1024)]
)
def test_scores_do_not_depend_on_order_batches_or_chunks(
    make: Models, batch_tokens: int, chunk_tokens: int
) -> None:
    model, (prompts, responses) = make(), rows(9)
    expected = reference_scores(model, prompts, responses, k=3, vocab_size=V)
    lengths = [len(r) for r in responses]
    ends = np.cumsum(lengths)
    engine = model.engine(batch_tokens=batch_tokens, chunk_tokens=chunk_tokens)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(9)
        tokens = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in order])
        found = engine.score(
            [prompts[i] for i in order],
            [responses[i] for i in order],
            signal=Signal(3),
            vocab_size=V,
        )
        assert_same_scores(found, expected.take(tokens))


def test_a_teachers_sample_does_not_depend_on_order_batches_or_chunks(make: Models) -> None:
    model, (prompts, responses) = make(), rows(9)
    given: dict[str, Any] = {"signal": Signal(2, sample=5, draws=2), "vocab_size": V}
    expected = model.engine().score(prompts, responses, **given)
    engine = model.engine(batch_tokens=40, chunk_tokens=3)
    alone = [
        engine.score([p], [r], **given) for p, r in zip(prompts[::-1], responses[::-1], strict=True)
    ]
    found = Scores.joined(alone[::-1])
    for name in ("sample_ids", "draw_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("sample_logprobs", "sample_threshold"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_ids_above_the_shared_vocabulary_are_left_to_the_tail(make: Models) -> None:
    model, (prompts, responses) = make(vocab=40), rows()
    found = model.engine().score(prompts, responses, signal=Signal(V), vocab_size=V)
    assert_same_scores(found, reference_scores(model, prompts, responses, k=V, vocab_size=V))
    assert found.topk_ids.max() < V
    assert found.tail_logprobs.min() > math.log(0.01)
    mass = np.exp(found.topk_logprobs).sum(-1) + np.exp(found.tail_logprobs)
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def test_an_engine_names_its_vocabulary_and_its_context(make: Models) -> None:
    engine = make(vocab=40).engine()
    assert (engine.name, engine.vocab_size, engine.context_length) == ("hf", 40, 128)
    assert "transformers" in engine.version and "torch" in engine.version


@pytest.mark.parametrize(("arch", "tied"), KINDS)
def test_a_row_draws_the_same_tokens_alone_and_in_any_batch(
    make: Models, arch: str, tied: bool
) -> None:
    model, prompts = make(arch, tied), rows(9)[0]
    engine = model.engine()
    alone = [
        engine.generate([prompt], [derived_seed("row", i)], PLAIN)[0]
        for i, prompt in enumerate(prompts)
    ]
    assert len({s.ids.tobytes() for s in alone}) > 5
    for seed, batch_tokens in enumerate([1, 50, 100_000]):
        order = np.random.default_rng(seed).permutation(9)
        batched = generate(model.engine(batch_tokens=batch_tokens), prompts, PLAIN, order)
        for mine, other in zip(batched, alone, strict=True):
            np.testing.assert_array_equal(mine.ids, other.ids)
            np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-5)
            assert mine.finish_reason == other.finish_reason


def test_sampling_holds_no_more_logits_than_it_may_and_draws_the_same(
    make: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts, plain, seen = make(), rows(9)[0], Head.logits, list[int]()
    sampling = replace(PLAIN, candidates=3)
    expected = generate(model.engine(), prompts, sampling, range(9))

    def seeing(self: Head, states_BH: torch.Tensor) -> torch.Tensor:
        seen.append(len(states_BH))
        return plain(self, states_BH)

    engine = model.engine(chunk_tokens=2)
    monkeypatch.setattr(Head, "logits", seeing)
    for mine, other in zip(generate(engine, prompts, sampling, range(9)), expected, strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_array_equal(mine.candidate_ids, other.candidate_ids)
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-5)
    assert max(seen) == 2


def test_another_seed_draws_other_tokens(make: Models) -> None:
    prompts = [rows(1)[0][0]] * 20
    samples = make().engine().generate(prompts, [derived_seed("s", i) for i in range(20)], PLAIN)
    assert len({s.ids.tobytes() for s in samples}) > 15


@pytest.mark.parametrize("arch", ["qwen3", "gemma2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.9},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_logprobs_are_of_the_distribution_that_was_sampled(
    make: Models, arch: str, changes: dict[str, Any]
) -> None:
    model, prompts, sampling = make(arch), rows(9)[0], replace(PLAIN, **changes)
    samples = generate(model.engine(batch_tokens=60), prompts, sampling, range(9))
    for prompt, sample in zip(prompts, samples, strict=True):
        processed = reference_logprobs(model.logits(prompt, sample.ids), sampling)
        expected = processed[np.arange(len(sample.ids)), sample.ids]
        assert sample.logprobs.dtype == np.float32 and sample.ids.dtype == np.int32
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_students_own_sample_is_of_what_each_token_was_drawn_from(
    make: Models, changes: dict[str, Any]
) -> None:
    model, sampling = make("qwen3", True), replace(PLAIN, sample=PLACES, **changes)
    engine = model.engine(batch_tokens=60)
    assert_own_samples(model, engine, rows(9)[0], sampling, atol=1e-5)
    plain = generate(engine, rows(9)[0], replace(PLAIN, **changes), range(9))
    sampled = generate(engine, rows(9)[0], sampling, range(8, -1, -1))
    for mine, other in zip(plain, sampled, strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)


def test_more_own_ids_than_there_are_is_said(make: Models) -> None:
    few = replace(PLAIN, vocab_size=9)
    for name, sampling in (
        ("sample", replace(few, sample=10)),
        ("candidates", replace(few, candidates=10)),
    ):
        with pytest.raises(ConfigError, match=rf"rollout\.{name} = 10, but the vocabulary has 9"):
            generate(make("qwen3", True).engine(), rows(2)[0], sampling, range(2))


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(make: Models) -> None:
    stops = (EOS, 7, 9)
    sampling = replace(PLAIN, stop_token_ids=stops, max_new_tokens=5)
    engine, prompts = make().engine(), rows(60)[0]
    samples = generate(engine, prompts, sampling, range(60))
    reasons = [(len(s.ids) == 5, s.finish_reason) for s in samples]
    assert set(reasons) == {(True, "stop"), (True, "length"), (False, "stop")}
    for sample in samples:
        ids = sample.ids.tolist()
        assert 1 <= len(ids) == len(sample.logprobs) <= 5
        assert not set(ids[:-1]) & set(stops)
        assert (ids[-1] in stops) == (sample.finish_reason == "stop")


def test_stop_tokens_and_the_limit_only_cut_a_response(make: Models) -> None:
    engine, prompts = make().engine(), rows(20)[0]
    endless = replace(PLAIN, stop_token_ids=(), max_new_tokens=12)
    long = generate(engine, prompts, endless, range(20))
    assert {(len(s.ids), s.finish_reason) for s in long} == {(12, "length")}
    for sampling in (PLAIN, replace(endless, max_new_tokens=3)):
        for short, whole in zip(generate(engine, prompts, sampling, range(20)), long, strict=True):
            np.testing.assert_array_equal(short.ids, whole.ids[: len(short.ids)])
            np.testing.assert_allclose(short.logprobs, whole.logprobs[: len(short.ids)], atol=1e-5)


@pytest.mark.parametrize("kind", ["addition", "chat"])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    make: Models, kind: str
) -> None:
    model, prompts = make(tokenizer=kind), rows(60)[0]
    tokenizer = model_tokenizer(model.source)
    strings = ("12", "+", "7<eos>3") if kind == "addition" else ("th", "e", "\n", "é")
    sampling = replace(PLAIN, stop_strings=strings, max_new_tokens=12)
    engine = model.engine(batch_tokens=400)
    samples = generate(engine, prompts, sampling, range(60))
    long = generate(engine, prompts, replace(sampling, stop_strings=()), range(60))
    by_text = 0
    for prompt, sample, whole in zip(prompts, samples, long, strict=True):
        assert_ends(tokenizer, prompt, sample, sampling)
        np.testing.assert_array_equal(sample.ids, whole.ids[: len(sample.ids)])
        np.testing.assert_allclose(sample.logprobs, whole.logprobs[: len(sample.ids)], atol=1e-5)
        by_text += sample.finish_reason == "stop" and sample.ids[-1] != EOS
    assert by_text > 5, "a weak test"


def test_a_model_without_a_tokenizer_cannot_end_at_a_string(tmp_path: Path, make: Models) -> None:
    bare = make_model(tmp_path, seed=1)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    engine = Tiny(bare, None).engine()
    assert len(generate(engine, rows(1)[0], PLAIN, range(1))) == 1
    with pytest.raises(ConfigError, match="no tokenizer in"):
        generate(engine, rows(1)[0], replace(PLAIN, stop_strings=("1",)), range(1))


@pytest.mark.parametrize(("arch", "tied"), KINDS)
def test_temperature_zero_takes_the_most_likely_token_each_time(
    make: Models, arch: str, tied: bool
) -> None:
    model, prompts = make(arch, tied), rows(9)[0]
    greedy = replace(PLAIN, temperature=0.0)
    samples = generate(model.engine(batch_tokens=60), prompts, greedy, range(9))
    for prompt, sample in zip(prompts, samples, strict=True):
        expected: list[int] = []
        while len(expected) < greedy.max_new_tokens and EOS not in expected:
            so_far = np.array([*expected, 0], dtype=np.int32)
            expected.append(int(model.logits(prompt, so_far)[-1].argmax()))
        assert sample.ids.tolist() == expected


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.95}], ids=["plain", "truncated"]
)
def test_samples_follow_the_models_distribution(make: Models, changes: dict[str, Any]) -> None:
    draws, prompt = 4000, rows(1)[0][0]
    model = make()
    sampling = replace(PLAIN, stop_token_ids=(), max_new_tokens=2, **changes)
    seeds = [derived_seed("draw", i) for i in range(draws)]
    samples = model.engine(batch_tokens=100_000).generate([prompt] * draws, seeds, sampling)
    pairs = np.array([s.ids for s in samples])
    first = np.exp(reference_logprobs(model.logits(prompt, pairs[0])[:1], sampling))[0]
    second = np.zeros((V, V))
    for token in range(V):
        row = np.array([token, 0], dtype=np.int32)
        second[token] = np.exp(reference_logprobs(model.logits(prompt, row)[1:], sampling))[0]
    expected = (first[:, None] * second).reshape(-1) * draws
    counts = np.bincount(pairs[:, 0] * V + pairs[:, 1], minlength=V * V)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    statistic = ((observed - predicted) ** 2 / predicted).sum()
    freedom = len(observed) - 1
    assert freedom > 20
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_no_prompt_gives_no_sample(make: Models) -> None:
    assert make().engine().generate([], [], PLAIN) == []


def test_bfloat16_scores_are_near_those_of_float32(make: Models) -> None:
    model, (prompts, responses) = make(), rows()
    source = ModelSource(str(model.folder), None, False)
    start = Start(source, EngineSection(device="cpu"), dtype="bfloat16", use="score")
    engine = open_engine(start, print)
    found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert found.token_logprob.dtype == np.float32
    gap = np.abs(found.token_logprob - expected.token_logprob)
    assert 1e-5 < gap.mean() < 0.1
