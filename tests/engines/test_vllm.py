"""The vLLM engine, real and on the CPU, against full forwards; and what it leaves behind."""

import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main as benchmark
from pipeline.engines.engine import Sampling
from pipeline.engines.installed import engine_version, require_engine
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.vllm import host
from pipeline.engines.vllm.requests import stop_parameters
from pipeline.models.source import ModelSource
from pipeline.models.stopstrings import StopStrings
from pipeline.models.tokenizer import model_tokenizer
from pipeline.quickstart.addition import EOS
from pipeline.scores.scores import Scores
from pipeline.store.storage import Storage
from schemas.columns import Ids
from schemas.config.engines import EngineSection, VllmSection
from schemas.config.score import ScoreSection
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal
from tests.support.golden import (
    PLAIN,
    Models,
    Tiny,
    V,
    adapted,
    assert_same_scores,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.runs import Cli, children_killed, finish, keys_below, snapshot, start
from tests.support.stopgolden import KINDS as KINDS_OF_TEXT
from tests.support.stopgolden import assert_ends, batch_ends, cases, prompt_of, tokenizer_of
from tests.support.tiny import write_run
from tests.support.warm import Process
from tests.system.test_benchmarks import check_record

try:
    require_engine("vllm")
except ConfigError:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from pipeline.engines.vllm.arguments import cpu_cache_bytes
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.engines.vllm.host import OWN_PROCESS

pytestmark = pytest.mark.usefixtures("beside_flask")

ENGINES = {f"{section}.engine": "vllm" for section in ("eval", "rollout", "score")}


KINDS = [(arch, tied) for arch in ("qwen3", "llama") for tied in (True, False)]
ATOL = 1e-4
"""Largest difference from float64, nats; 1e-3 is what opd promises."""
FULL = Signal(4, tail_buckets=3, candidates=2, draws=5)


@contextmanager
def opened(
    model: Tiny,
    *,
    dtype: str = "float32",
    max_tokens: int = 60,
    note: Callable[[str], None] = print,
    reads_text: bool = False,
    **settings: Any,
) -> Iterator[VllmEngine]:
    kind = ScoreSection if "k" in settings else EngineSection
    section = kind(engine="vllm", **settings)
    engine = VllmEngine(
        model.source,
        dtype=dtype,
        settings=section,
        max_tokens=max_tokens,
        note=note,
        reads_text=reads_text,
    )
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """Return a maker of models that vLLM can run."""
    return Models(tmp_path_factory.mktemp)


class Kept:
    """The one engine that several tests share: a process holds one at a time."""

    def __init__(self) -> None:
        """Begin without any."""
        self._stack = ExitStack()
        self._model: Tiny | None = None

    def get(self, model: Tiny, **settings: Any) -> VllmEngine:
        """Return an engine with a model, another one's place taken."""
        if self._model is not model:
            self.close()
            self._engine = self._stack.enter_context(opened(model, **settings))
            self._model = model
        return self._engine

    def close(self) -> None:
        """Close the engine if there is one."""
        self._stack.close()
        self._model = None


@pytest.fixture(scope="module")
def kept(beside_flask: None) -> Iterator[Kept]:
    """Return the holder of the shared engine."""
    holder = Kept()
    yield holder
    holder.close()


@pytest.fixture(autouse=True)
def one_engine_at_a_time(request: pytest.FixtureRequest, kept: Kept) -> None:
    """Close the shared engine before a test that starts its own."""
    if not {"held", "plain"} & set(request.fixturenames):
        kept.close()


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest, make: Callable[..., Tiny]) -> Tiny:
    """Return each kind of model in turn."""
    return make(*request.param)


@pytest.fixture
def held(kind: Tiny, kept: Kept) -> tuple[Tiny, VllmEngine]:
    """Return each kind of model in turn, with its engine."""
    return kind, kept.get(kind)


@pytest.fixture(scope="module")
def model_with_settings(make: Callable[..., Tiny]) -> Tiny:
    """Return a model whose files name sampling parameters."""
    model = make(seed=5)
    (model.folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0}'
    )
    return model


@pytest.fixture
def plain(model_with_settings: Tiny, kept: Kept) -> tuple[Tiny, VllmEngine]:
    """Return that model with its engine, which can end responses at strings."""
    return model_with_settings, kept.get(model_with_settings, max_tokens=500, reads_text=True)


# --- scores ---


def test_scores_equal_a_full_forward_of_each_row(held: tuple[Tiny, VllmEngine]) -> None:
    (model, engine), (prompts, responses) = held, rows()
    for k in (1, 4, V):
        found = engine.score(prompts, responses, signal=Signal(k), vocab_size=V)
        expected = reference_scores(model, prompts, responses, k=k, vocab_size=V)
        assert_same_scores(found, expected, atol=ATOL)
        if k == V:
            assert np.isneginf(found.tail).all()
    assert expected.entropy is not None
    assert expected.entropy.min() < math.log(V) - 0.3, "the model is flat: a weak test"


def test_every_signal_is_that_of_the_reference_engine(held: tuple[Tiny, VllmEngine]) -> None:
    (model, engine), (prompts, responses) = held, rows(20)
    random = np.random.default_rng(1)
    candidates = [random.integers(0, V, (len(r), 2)).astype(np.int32) for r in responses]
    for signal in (FULL, Signal(6, top_p=0.8, min_k=2, candidates=2)):
        given: dict[str, Any] = {"signal": signal, "vocab_size": V - 2, "candidates": candidates}
        found = engine.score(prompts, responses, **given)
        expected = model.engine().score(prompts, responses, **given)
        for name, value in vars(expected).items():
            mine = getattr(found, name)
            assert (mine is None) == (value is None), name
            if value is not None:
                assert mine.dtype == value.dtype
                np.testing.assert_allclose(mine, value, rtol=0, atol=ATOL, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [({"arch": "qwen3"}, None), ({"arch": "stablelm", "hidden": 128}, "takes none")],
    ids=["applied", "merged"],
)
def test_an_adapter_gives_scores_and_samples_of_the_adapted_model(
    make: Callable[..., Tiny], tmp_path: Path, kind: dict[str, Any], reason: str | None
) -> None:
    base, (prompts, responses), notes = make(**kind), rows(20), list[str]()
    model, candidates = adapted(base, tmp_path / "adapter"), Signal(4, candidates=1)
    ids = [response[:, None] for response in responses]
    with opened(model, k=4, batch_tokens=64, note=notes.append) as engine:
        own = engine._host._llm.llm_engine.vllm_config.lora_config
        assert (own is None) == (reason is not None) == any(str(reason) in n for n in notes)
        found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
        tested = engine.score(prompts, responses, signal=candidates, vocab_size=V, candidates=ids)
        samples = generate(engine, prompts, PLAIN, range(20))
        scratch = Path(engine._host._llm.model_config.model)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected, atol=ATOL)
    assert tested.candidate_logprobs is not None
    np.testing.assert_allclose(tested.candidate_logprobs[:, 0], expected.token_logprob, atol=ATOL)
    plain = reference_scores(base, prompts, responses, k=4, vocab_size=V)
    assert np.abs(plain.token_logprob - expected.token_logprob).max() > 0.1, "a weak adapter"
    for prompt, sample in zip(prompts, samples, strict=True):
        logprobs = reference_logprobs(model.logits(prompt, sample.ids), PLAIN)
        own_logprobs = logprobs[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own_logprobs, atol=ATOL)
    assert scratch.exists() == (scratch == base.folder)  # a merged copy is gone


@pytest.mark.slow
def test_a_model_whose_layers_are_split_and_spread_over_workers_is_the_same_model(
    make: Callable[..., Tiny],
) -> None:
    model, (prompts, responses) = make(), rows(4)
    split = VllmSection(tensor_parallel_size=2, pipeline_parallel_size=2)
    with opened(model, k=4, batch_tokens=64, vllm=split) as engine:
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
        {"k": 3, "batch_tokens": 8, "logit_chunk_tokens": 3},
        {"logit_chunk_tokens": 1, "vllm": VllmSection(max_num_seqs=2)},
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


def long_rows(count: int, prompt: int, response: int) -> tuple[list[Ids], list[Ids]]:
    random = np.random.default_rng(3)
    return tuple(  # type: ignore[return-value]  # two lists
        [random.integers(3, V, n).astype(np.int32) for _ in range(count)]
        for n in (prompt, response)
    )


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


# --- samples ---


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
    held: tuple[Tiny, VllmEngine], changes: dict[str, Any]
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


def test_a_row_draws_the_same_tokens_alone_and_in_any_batch(held: tuple[Tiny, VllmEngine]) -> None:
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
    held: tuple[Tiny, VllmEngine],
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


def test_first_tokens_follow_the_models_distribution(plain: tuple[Tiny, VllmEngine]) -> None:
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


# --- stop strings ---


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    plain: tuple[Tiny, VllmEngine], temperature: float
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


# --- limits, faults and what is left behind ---


def test_an_engine_names_its_vocabulary_and_its_context(plain: tuple[Tiny, VllmEngine]) -> None:
    engine = plain[1]
    assert (engine.name, engine.vocab_size, engine.context_length) == ("vllm", V, 128)
    assert engine.generate([], [], PLAIN) == []
    assert "vllm" in engine.version and "torch" in engine.version


def test_the_process_is_left_as_it_was_found(make: Callable[..., Tiny]) -> None:
    model, group = make(), torch.distributed.is_initialized()
    before = dict(os.environ), torch.set_num_threads, torch.get_rng_state(), group
    with opened(model) as engine:
        generate(engine, rows(2)[0], PLAIN, range(2))
    changed = {n for n in {*before[0], *os.environ} if before[0].get(n) != os.environ.get(n)}
    assert all(name.startswith("VLLM_") for name in changed)
    assert torch.set_num_threads is before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.distributed.is_initialized() == before[3]


def test_a_full_memory_halves_the_forward_pass_and_goes_on(
    make: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.vllm import worker
    from pipeline.scores import signals

    model, (prompts, responses), notes = make(), rows(9), list[str]()
    original = signals.score_signals

    def scarce(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(logits) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return original(logits, *args, **kwargs)

    monkeypatch.setattr(worker, "score_signals", scarce)
    section = EngineSection(engine="vllm", batch_tokens=128)
    source = ModelSource(str(model.folder), None, False)

    def start() -> VllmEngine:
        return VllmEngine(source, dtype="float32", settings=section, max_tokens=60)

    with LazyEngine(start, notes.append) as engine, pytest.raises(CapacityError, match="scoring"):
        engine.call(lambda e: e.score(prompts, responses, signal=Signal(4), vocab_size=V))
    assert len(notes) == 1 and "half" in notes[0]  # 128, 64: less is not tried
    monkeypatch.setattr(worker, "score_signals", original)


def test_a_temperature_that_vllm_would_raise_is_refused(plain: tuple[Tiny, VllmEngine]) -> None:
    with pytest.raises(ConfigError, match=r"0\.001.*0\.01"):
        plain[1].generate([rows(1)[0][0]], [1], replace(PLAIN, temperature=0.001))


def test_a_model_that_vllm_cannot_run_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, had_group = (
        Models(tmp_path_factory.mktemp)("qwen3", head_dim=8),
        torch.distributed.is_initialized(),
    )
    with pytest.raises(ConfigError, match=str(model.folder)), opened(model):
        pass
    assert torch.distributed.is_initialized() == had_group


def test_a_cache_that_holds_no_sequence_is_refused(make: Callable[..., Tiny]) -> None:
    shape = make().reference.config
    with pytest.raises(CapacityError, match="key-value cache"):
        cpu_cache_bytes(shape, "float32", tokens=1, least=1 << 40)
    few = cpu_cache_bytes(shape, "float32", tokens=128, least=128)
    assert few < cpu_cache_bytes(shape, "float32", tokens=12800, least=128)


def test_without_vllm_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ConfigError, match=r"opd\[vllm\]"):
        engine_version("vllm")


def test_sampling_defaults_of_the_models_files_are_not_used(
    plain: tuple[Tiny, VllmEngine],
) -> None:
    (model, engine), prompts = plain, [rows(1)[0][0]] * 20
    sampling: Sampling = replace(PLAIN, max_new_tokens=4)
    samples = generate(engine, prompts, sampling, range(20))
    assert len({s.ids.tobytes() for s in samples}) > 10
    for sample in samples:
        expected = reference_logprobs(model.logits(prompts[0], sample.ids), sampling)
        mine = expected[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, mine, atol=ATOL)


# --- text ---


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


# --- whole runs ---


def test_the_benchmark_of_engines_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(["engines", "--quick", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["quick"]
    check_record(record, "engines")


def test_a_run_survives_kills_and_ends_with_the_manifests_of_a_quiet_one(
    tmp_path: Path, cli: Cli
) -> None:
    quiet, other = tmp_path / "quiet", tmp_path / "killed"
    one_round = {**ENGINES, "run.rounds": 1, "eval.teachers": False}
    write_run(quiet, changes=one_round)
    shutil.copytree(quiet, other)
    killed = write_run(other, changes={**ENGINES, "run.rounds": 1, "eval": None})
    cli.ok("run", "-c", quiet / "run.toml")
    storage, round_ = Storage(str(other / "store")), "runs/tiny/rounds/0000"
    cli.ok("rollout", "-c", killed, "--round", "0")
    process = start("score", "-c", killed, "--round", "0", "--json", env={OWN_PROCESS: "1"})
    wait_for_commit(storage, f"{round_}/score/main/commits", process)
    engine = psutil.Process(process.pid).children(recursive=True)
    process.kill()  # alone: what it started must end by itself
    finish(process)
    assert engine and not psutil.wait_procs(engine, timeout=20)[1]
    cli.ok("run", "-c", killed)
    mine, theirs = (snapshot(Storage(str(f / "store")), round_) for f in (other, quiet))
    for stage in ("rollout", "score/main"):
        assert mine[f"{round_}/{stage}/manifest.json"] == theirs[f"{round_}/{stage}/manifest.json"]

    before = snapshot(storage, "runs/tiny")
    again = cli.ok("run", "-c", killed)
    assert again["units"] == 0 and snapshot(storage, "runs/tiny") == before
    changes = ["--set", "run.name=other", "--set", "loss.kind=reverse_kl"]
    cli.ok("rollout", "-c", killed, "--round", "0", *changes)
    scored = cli.ok("score", "-c", killed, "--round", "0", *changes)
    assert scored["teacher_tokens"] == 0 and scored["reused_rows"] == scored["rows"] > 0


def test_a_process_of_vllm_that_is_killed_ends_the_stage_and_the_same_command_goes_on(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"score.engine": "vllm", "score.batch_tokens": 64, "eval": None}  # less is not tried
    config = write_run(tmp_path, changes=changes)
    storage, folder = Storage(str(tmp_path / "store")), "runs/tiny/rounds/0000/score/main/commits"
    rollout = cli.ok("rollout", "-c", config, "--round", "0")
    with monkeypatch.context() as patch, children_killed(folder) as killed:
        patch.setenv(OWN_PROCESS, "1")
        outcome = cli("score", "-c", config, "--round", "0", "--json")
    assert killed and outcome.code == CapacityError.exit_code == 7
    assert "vLLM's engine process ended on its own" in outcome.result["error"]
    before = {key: storage.get(key) for key in keys_below(storage, folder)}
    assert len(before) == 1

    again = cli.ok("score", "-c", config, "--round", "0")
    assert (again["units"], again["rows"]) == (3, rollout["rows"])
    after = {key: storage.get(key) for key in keys_below(storage, folder)}
    assert len(after) == 4 and before.items() <= after.items()
    (first,) = (json.loads(data or b"")["teacher_tokens"] for data in before.values())
    manifest = json.loads(storage.get(folder.replace("commits", "manifest.json")) or b"")
    assert manifest["teacher_tokens"] == again["teacher_tokens"] + first > first > 0
    assert manifest["teacher_tokens"] - rollout["tokens"] == prompt_tokens(storage)


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process")
def test_the_answer_of_a_process_that_died_is_not_waited_for(
    make: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN_PROCESS, "1")
    monkeypatch.setattr(host, "LOOK_S", 0.2)
    prompts, responses = rows(2)
    with opened(make()) as engine:
        (process,) = (p for p in psutil.Process().children() if p.name().startswith("VLLM"))
        process.suspend()  # so that it does not answer before it is killed
        killer = threading.Timer(1.0, process.kill)
        killer.start()
        with pytest.raises(CapacityError, match="ended on its own"):
            engine.score(prompts, responses, signal=Signal(2), vocab_size=V)
        killer.join()


def prompt_tokens(storage: Storage) -> int:
    """Return the prompt tokens of the first round's rows, which a teacher reads once."""
    data = storage.get("runs/tiny/rounds/0000/rollout/manifest.json") or b""
    keys = [unit["shard"]["key"] for unit in json.loads(data)["units"]]
    tables = [pq.read_table(storage.local_root / key) for key in keys if storage.local_root]
    return sum(len(ids) for table in tables for ids in table["prompt_ids"].to_pylist())


def wait_for_commit(storage: Storage, folder: str, process: Process) -> None:
    """Wait until a stage has committed something, or is over."""
    for _ in range(6000):
        if list(storage.names(folder)) or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing was committed below {folder}")
