"""The server engine with real vLLM servers on the CPU, started by opd, against full forwards."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines.opening import engine_version, require_engine
from pipeline.engines.server.derivedtail import mass_error
from pipeline.engines.server.engine import ServerEngine
from pipeline.models.tokenizer import model_tokenizer
from pipeline.quickstart.addition import EOS
from pipeline.store.storage import Storage
from schemas.columns import flat_values
from schemas.config.engines import EngineSection, ServerSection, VllmSection
from schemas.errors import ConfigError
from schemas.scoresignal import Signal
from tests.support.golden import (
    PLAIN,
    Models,
    Tiny,
    V,
    adapted,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.runs import Cli, children_killed
from tests.support.servergolden import open_server
from tests.support.stopgolden import assert_ends
from tests.support.tiny import write_run

try:
    require_engine("vllm")
except ConfigError:
    pytest.skip("vLLM is not installed", allow_module_level=True)

ATOL = 1e-4
"""Largest difference from float64, nats; 1e-3 is what opd promises."""
Held = tuple[Tiny, ServerEngine]
STOPPED = replace(PLAIN, stop_strings=("1", "+", "=3", "3<eos>"), candidates=2)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Held]]:
    """Return a model and an adapter of it, with the engine that has started a server for both.

    The model runs in the server's own process; below, a stage's server gives it one of its own.
    """
    model = Models(tmp_path_factory.mktemp)("llama", tied=False)
    adapter = adapted(model, tmp_path_factory.mktemp("adapter"))
    section = EngineSection(
        engine="server",
        batch_tokens=64,
        vllm=VllmSection(max_num_seqs=8),
        server=ServerSection(concurrency=16, retry_s=10.0),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        engine = open_server(adapter.source, section, reads_text=True)
        for sampling in (PLAIN, STOPPED):  # the first samples of each have the server looked at
            generate(engine, rows(1)[0], sampling, range(1))
    try:
        yield {"model": (model, engine), "adapter": (adapter, engine)}
    finally:
        engine.close()


@pytest.fixture
def held(served: dict[str, Held]) -> Held:
    """Return the adapter and its engine."""
    return served["adapter"]


@pytest.fixture(
    params=[("model", True), ("adapter", True), ("adapter", False)],
    ids=["model", "adapter", "adapter-completions"],
)
def either(request: pytest.FixtureRequest, served: dict[str, Held]) -> Iterator[Held]:
    """Return a model and its engine, which asks one endpoint of the server or the other."""
    name, compact = request.param
    model, engine = served[name]
    (server,) = engine._running.pool.servers
    assert server.compact and server.model == "adapter"
    if name == "model":
        server.model = str(model.folder)  # the server lists it beside its adapter
    server.compact = compact
    yield model, engine
    server.compact, server.model = True, "adapter"


def test_the_adapter_is_told_from_its_base(served: dict[str, Held]) -> None:
    (prompts, responses), found = rows(20), []
    for model, _ in served.values():
        found.append(reference_scores(model, prompts, responses, k=4, vocab_size=V).token_logprob)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_scores_equal_a_full_forward_of_each_row(either: Held) -> None:
    (model, engine), (prompts, responses) = either, rows(20)
    for k, limit in ((1, V), (4, V), (V, V), (3, V - 4)):
        found = engine.score(prompts, responses, signal=Signal(k), vocab_size=limit)
        expected = reference_scores(model, prompts, responses, k=k, vocab_size=limit)
        for name in ("topk_ids", "token_rank"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for name in ("topk_logprobs", "token_logprob"):
            value = getattr(expected, name)
            np.testing.assert_allclose(getattr(found, name), value, rtol=0, atol=ATOL)
        mass, exact = np.exp(found.tail_logprobs.astype(float)), np.exp(expected.tail_logprobs)
        np.testing.assert_allclose(mass, exact, rtol=ATOL, atol=mass_error(V))
        assert found.entropy is None
        if k == V:
            assert np.isneginf(found.tail_logprobs).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6, "top_k": 6, "candidates": 3},
        {"temperature": 1.7, "top_p": 0.7},
        {"temperature": 0.0, "candidates": 2},
        {"vocab_size": V - 3, "candidates": 4},
    ],
    ids=str,
)
def test_logprobs_are_of_the_distribution_that_was_sampled(
    either: Held, changes: dict[str, Any]
) -> None:
    (model, engine), prompts, sampling = either, rows(9)[0], replace(PLAIN, **changes)
    samples = generate(engine, prompts, sampling, range(9))
    again = generate(engine, prompts, sampling, [*range(5, 9), *range(5)])
    limit = sampling.vocab_size or V
    for prompt, sample, same in zip(prompts, samples, again, strict=True):
        np.testing.assert_array_equal(sample.ids, same.ids)
        processed = reference_logprobs(model.logits(prompt, sample.ids)[:, :limit], sampling)
        own = processed[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)
        assert (sample.ids < limit).all()
        ended = sample.ids[-1] in sampling.stop_token_ids
        assert sample.finish_reason == ("stop" if ended else "length")
        if sampling.candidates:
            assert sample.candidate_logprobs is not None
            top = -np.sort(-processed, axis=1)[:, : sampling.candidates]
            np.testing.assert_allclose(sample.candidate_logprobs, top, atol=ATOL)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    either: Held, temperature: float
) -> None:
    (model, engine), prompts = either, rows(30)[0]
    tokenizer, sampling = model_tokenizer(model.source), replace(STOPPED, temperature=temperature)
    samples = generate(engine, prompts, sampling, range(30))
    for prompt, sample in zip(prompts, samples, strict=True):
        assert_ends(tokenizer, prompt, sample, sampling)
        processed = reference_logprobs(model.logits(prompt, sample.ids), sampling)
        own = processed[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)
    assert sum(s.finish_reason == "stop" and s.ids[-1] != EOS for s in samples) > 3, "a weak test"
    if temperature == 0.0:
        for sample, same in zip(
            samples, generate(model.engine(), prompts, sampling, range(30)), strict=True
        ):
            np.testing.assert_array_equal(sample.ids, same.ids)


def test_samples_depend_on_their_seeds(held: Held) -> None:
    prompts = [rows(1)[0][0]] * 20
    samples = generate(held[1], prompts, PLAIN, range(20))
    assert len({sample.ids.tobytes() for sample in samples}) > 10
    assert "stop" in {sample.finish_reason for sample in samples}


def test_an_engine_names_its_version_and_its_limits(held: Held) -> None:
    engine = held[1]
    assert (engine.name, engine.vocab_size, engine.context_length) == ("server", V, 61)
    assert engine.version == engine_version("server")
    assert engine.generate([], [], PLAIN) == []


@pytest.mark.slow
def test_a_round_is_scored_by_a_server_of_its_own_that_is_killed_and_trained_on(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # engines here set it
    changes = {"eval": None, "run.rounds": 1}
    config = write_run(tmp_path, changes={**changes, "score.engine": "server"})
    cli.ok("rollout", "-c", config, "--round", "0")
    with children_killed("runs/tiny/rounds/0000/score/main/commits") as killed:
        outcome = cli("score", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0 and killed, outcome.stderr
    assert "ended on its own" in outcome.stderr and "half the tokens" in outcome.stderr
    result = outcome.result
    assert (result["units"], result["rows"]) == (4, 16) and result["engine_start_s"] > 1.0
    assert cli.ok("score", "-c", config, "--round", "0")["units"] == 0
    cli.ok("train", "-c", config, "--round", "0")
    storage, folder = Storage(str(tmp_path / "store")), "runs/tiny/rounds/0000/score/main"
    manifest = json.loads(storage.get(f"{folder}/manifest.json") or b"")
    assert_as_hf(tmp_path, cli, manifest, storage, changes)
    (figures,) = cli.ok("cache", "stats", manifest["scorer"], "-c", config)["scorers"]
    assert figures["all"]["entropy"] is None and figures["all"]["tail_mass"] > 0.0


def assert_as_hf(
    folder: Path, cli: Cli, manifest: dict[str, Any], storage: Storage, changes: dict[str, Any]
) -> None:
    """Score the same round with the reference engine, and compare."""
    from pipeline.shards.scores import read_scores
    from schemas.records.shards import Shard

    other = write_run(folder, changes={**changes, "run.name": "other"}, file="other.toml")
    cli.ok("rollout", "-c", other, "--round", "0")
    cli.ok("score", "-c", other, "--round", "0")
    key = "runs/other/rounds/0000/score/main/manifest.json"
    reference = json.loads(storage.get(key) or b"")
    assert reference["scorer"] != manifest["scorer"]
    for mine, theirs in zip(manifest["units"], reference["units"], strict=True):
        found = read_scores(storage, Shard(**mine["shard"]), scorer=manifest["scorer"])
        exact = read_scores(storage, Shard(**theirs["shard"]), scorer=reference["scorer"])
        assert found.column("sequence_digest").equals(exact.column("sequence_digest"))
        assert found.column("entropy").null_count == found.num_rows
        np.testing.assert_allclose(
            flat_values(found, "token_logprob"), flat_values(exact, "token_logprob"), atol=1e-3
        )
        np.testing.assert_array_equal(
            flat_values(found, "token_rank"), flat_values(exact, "token_rank")
        )
