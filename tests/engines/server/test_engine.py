"""The server engine against a stand-in whose every number is known: numbers and refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.opening import scoring_version
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection, ServerSection, VllmSection
from schemas.errors import ConfigError, IdentityError, StorageError
from schemas.scoresignal import Signal, signal_for
from tests.support.golden import PLAIN, V, generate, reference_logprobs, rows
from tests.support.minimal import message
from tests.support.runs import Cli
from tests.support.servergolden import (
    FakeMaker,
    assert_scores,
    expected_scores,
    open_server,
    opened,
    scored,
)
from tests.support.tiny import write_run

# --- numbers ---


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(("k", "limit"), [(1, V), (4, V), (V - 1, V), (V, V), (4, V - 5)])
def test_scores_are_those_of_the_servers_numbers(
    source: ModelSource, fake: FakeMaker, compact: bool, k: int, limit: int
) -> None:
    server, (prompts, responses) = fake(compact=compact), rows(15)
    with opened(source, server) as engine:
        found = engine.score(prompts, responses, signal=Signal(k), vocab_size=limit)
    assert_scores(found, expected_scores(server, prompts, responses, k=k, limit=limit))
    if k == V:
        assert np.isneginf(found.tail_logprobs).all()


def test_a_position_ends_where_its_mass_is_reached_and_the_rest_goes_to_the_tail(
    source: ModelSource, fake: FakeMaker
) -> None:
    server, (prompts, responses) = fake(), rows(15)
    with opened(source, server) as engine:
        given: dict[str, Any] = {"signal": Signal(6, top_p=0.7, min_k=2), "vocab_size": V}
        found = engine.score(prompts, responses, **given)
    whole = expected_scores(server, prompts, responses, k=6)
    probs = np.exp(whole.topk_logprobs)
    kept = (np.cumsum(probs, axis=1) - probs < 0.7) | (np.arange(6) < 2)
    assert not kept.all() and kept.sum(axis=1).min() == 2
    np.testing.assert_array_equal(found.topk_ids, np.where(kept, whole.topk_ids, -1))
    mass = np.exp(found.topk_logprobs.astype(float)).sum(axis=1)
    total = mass + np.exp(found.tail_logprobs.astype(float))
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7, "top_k": 6, "candidates": 3},
        {"vocab_size": V - 3, "candidates": 2},
        {"candidates": V},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_samples_are_those_that_the_server_drew(
    source: ModelSource, fake: FakeMaker, compact: bool, changes: dict[str, Any]
) -> None:
    server, prompts, sampling = fake(compact=compact), rows(9)[0], replace(PLAIN, **changes)
    with opened(source, server) as engine:
        samples = generate(engine, prompts, sampling, range(9))
        again = generate(engine, prompts, sampling, [*range(4, 9), *range(4)])
    limit = sampling.vocab_size or V
    reasons = set()
    for prompt, sample, same in zip(prompts, samples, again, strict=True):
        np.testing.assert_array_equal(sample.ids, same.ids)
        reasons.add(sample.finish_reason)
        assert (sample.ids < limit).all()
        ids = prompt.tolist()
        raw = [server.logprobs([*ids, *sample.ids[:n].tolist()]) for n in range(len(sample.ids))]
        processed = reference_logprobs(np.array(raw)[:, :limit], sampling)
        own = processed[np.arange(len(sample.ids)), sample.ids]
        np.testing.assert_allclose(sample.logprobs, own, atol=1e-5)
        if sampling.candidates:
            assert sample.candidate_logprobs is not None
            top = -np.sort(-processed, axis=1)[:, : sampling.candidates]
            np.testing.assert_allclose(sample.candidate_logprobs, top, atol=1e-5)
            assert sample.candidate_ids is not None and (sample.candidate_ids < limit).all()
    assert reasons <= {"stop", "length"}


def test_a_server_with_log_probabilities_of_another_distribution_is_refused(
    source: ModelSource, fake: FakeMaker
) -> None:
    with opened(source, fake(processed=False)) as engine:
        assert scored(engine).entropy is None  # scores do not depend on it
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
            generate(engine, rows(1)[0], PLAIN, range(1))


def test_a_signal_says_what_a_server_lacks() -> None:
    assert signal_for("hf", Signal(4)) == Signal(4)
    words = signal_for("server", Signal(4, top_p=0.5)).words()
    assert words == {"k": 4, "top_p": 0.5, "tail": "derived", "entropy": False}
    for signal in (Signal(4, tail_buckets=2), Signal(4, draws=1), Signal(4, candidates=1)):
        with pytest.raises(ConfigError, match="'vllm' or 'hf'"):
            signal_for("server", signal)


# --- refusals ---


def test_a_wrong_key_is_told_by_its_variable_and_never_shown(
    source: ModelSource, fake: FakeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake(key="right-key")
    monkeypatch.setenv("MY_KEY", "wrong-key")
    named = opened(source, server, api_key_env="MY_KEY")
    with pytest.raises(ConfigError, match=r"\$MY_KEY") as told, named:
        pass
    assert "wrong-key" not in str(told.value)
    with pytest.raises(ConfigError, match="set server.api_key_env"), opened(source, server):
        pass
    monkeypatch.setenv("MY_KEY", "right-key")
    with opened(source, server, api_key_env="MY_KEY") as engine:
        scored(engine)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="not set"), opened(source, server, api_key_env="MY_KEY"):
        pass


def test_a_model_that_is_not_served_is_refused_with_those_that_are(
    source: ModelSource, fake: FakeMaker
) -> None:
    server = fake(models=("a", "b"))
    with pytest.raises(ConfigError, match=r"a, b"), opened(source, server):
        pass
    with pytest.raises(ConfigError, match=r"a, b.*no 'c'"), opened(source, server, model="c"):
        pass
    with opened(source, server, model="b") as engine:
        assert engine.context_length == 61
        server.faults.append(lambda reply: 400)
        with pytest.raises(ConfigError, match="status 400: injected"):
            scored(engine)


def test_servers_must_agree_on_version_weights_and_length(
    source: ModelSource, fake: FakeMaker
) -> None:
    first, section = fake(), EngineSection(engine="server")

    def asking(*urls: str) -> EngineSection:
        server = ServerSection(urls=urls, retry_s=0.3)
        return section.model_copy(update={"server": server})

    assert scoring_version(asking(first.url), 60) == "vllm-0.32.0"
    other, swapped = fake(version="0.33.0"), fake(weights=1)
    with pytest.raises(IdentityError, match=r"0\.3[23]\.0.*0\.3[23]\.0"):
        scoring_version(asking(first.url, other.url), 60)
    with pytest.raises(ConfigError, match="holds 61 tokens"):
        scoring_version(asking(first.url), 61)
    with pytest.raises(StorageError):
        scoring_version(asking("http://127.0.0.1:9"), 60)
    both = opened(source, first, swapped)
    with pytest.raises(IdentityError, match="nats on the same tokens"), both:
        pass


def test_a_server_that_comes_back_with_other_weights_is_refused(
    source: ModelSource, fake: FakeMaker
) -> None:
    server = fake()
    with opened(source, server) as engine:
        scored(engine)
        server.faults.append(lambda reply: None)
        server.weights = 7
        with pytest.raises(IdentityError, match="nats on the same tokens"):
            scored(engine)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (['score.server.urls=["127.0.0.1:80"]'], "base URL"),
        (['score.server.urls=["http://me:secret@h:1"]'], "api_key_env"),
        (['score.server.urls=["http://h:1","http://h:1"]'], "twice"),
        (["score.engine=server", "score.draws=1"], "full logits"),
        (["score.engine=server", "score.tail_buckets=2"], "full logits"),
        (["score.engine=server", "score.temperatures=[2.0]"], "full logits"),
        (["score.engine=server", "rollout.candidates=2"], "full logits"),
        (["rollout.engine=server", 'rollout.server.urls=["http://h:1"]'], "{policy}"),
        (["score.engine=vllm", "score.vllm.data_parallel_size=2"], "data_parallel_size"),
        (['score.server.api_key_env="sk-secret"'], "api_key_env"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_is_refused(changes: list[str], words: str) -> None:
    told = message(*changes)
    assert words in told
    assert "secret" not in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs can")
def test_a_server_on_a_cpu_is_not_asked_to_split_a_model_by_layers(source: ModelSource) -> None:
    split = VllmSection(pipeline_parallel_size=2)
    settings = EngineSection(engine="server", vllm=split)
    with pytest.raises(ConfigError, match="pipeline_parallel_size = 2.*engine = 'vllm'"):
        open_server(source, settings, max_tokens=9)


def test_a_round_is_sampled_under_the_name_of_its_weights_and_scored_by_two_servers(
    tmp_path: Path, cli: Cli, fake: FakeMaker
) -> None:
    student, teachers = fake(models=("student-old",), length=100), [fake(length=100) for _ in "ab"]
    changes: dict[str, object] = {
        "rollout.engine": "server",
        "rollout.server.urls": [student.url],
        "rollout.server.model": "student-{policy}",
        "score.engine": "server",
        "score.server.urls": [server.url for server in teachers],
        "eval": None,
    }
    config = write_run(tmp_path, changes=changes)
    refused = cli("rollout", "-c", config, "--round", "0")
    assert refused.code == 2 and "student-old" in refused.stderr
    (wanted,) = re.findall(r"no '(student-[0-9a-f]+)'", refused.stderr.replace("\n", ""))
    student.models = ("student-old", wanted)
    assert cli.ok("rollout", "-c", config, "--round", "0")["rows"] == 16
    assert cli.ok("score", "-c", config, "--round", "0")["rows"] == 16
    assert all(server.requests for server in teachers)
    (scorer,) = (tmp_path / "store/cache").glob("*/scorer.json")
    identity = json.loads(scorer.read_text())
    assert (identity["engine"], identity["engine_version"]) == ("server", "vllm-0.32.0")
    assert identity["signal"] == {"k": 4, "tail": "derived", "entropy": False}
    teachers[1].version = "0.33.0"
    again = cli("score", "-c", config, "--round", "0", "--only-invalid")
    assert again.code == 3 and "0.33.0" in again.stderr
