"""`opd doctor` on healthy and on broken set-ups, and the self-test that `opd score` begins with."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.engines.hf.engine import HfEngine
from pipeline.engines.processes import OWNER
from pipeline.scores.scores import Scores
from pipeline.store.storage import Storage
from schemas.columns import Ids
from tests.conftest import UseS3
from tests.support.runs import Cli
from tests.support.servers import S3Account
from tests.support.tiny import make_model, write_run

Score = Any
ON_HF = {"rollout.engine": "hf", "score.engine": "hf"}
"""The engine whose faults are played."""


def findings(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in result["findings"]}


def test_a_healthy_run_passes_with_its_figures(run_copy: Path, cli: Cli) -> None:
    result = cli.ok("doctor", "-c", run_copy / "run.toml", "--engines", "--drift", "--rows", "3")
    found = findings(result)
    assert {one["state"] for one in found.values()} == {"ok"}
    assert {"versions", "store", "orphans", "teacher main", "noise of main"} <= set(found)
    same = found["teacher = student"]["figures"]
    assert same["tokens"] > 10 and abs(same["kl"]) < 1e-9 and same["max"] < 1e-4
    assert found["noise of main"]["figures"]["max"] < 1e-4
    (drift,) = result["drift"]
    assert drift["rows"] == 3 and drift["drift"]["token_logprob"]["max"] < 1e-4
    assert 0 <= drift["rollout_kl"] < 1e-6
    kept = cli.ok("doctor", "-c", run_copy / "run.toml", "--drift", "--rows", "9")
    assert kept["drift"] == [drift], "a round's drift is measured once"


def test_the_words_for_people_name_what_deserves_a_look(run_copy: Path, cli: Cli) -> None:
    shown = cli("doctor", "-c", run_copy / "run.toml", "--drift").stdout
    assert "honours create-only" in shown and "|difference|" in shown
    assert "FAILED" not in shown


def test_the_drift_of_a_16_bit_teacher_is_seen(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, changes={"teachers.main.dtype": "bfloat16"})
    cli.ok("rollout", "-c", config, "--round", "0")
    (drift,) = cli.ok("doctor", "-c", config, "--drift")["drift"]
    assert 1e-4 < drift["drift"]["token_logprob"]["mean"] < 0.2
    assert drift["rollout_kl"] is None, "the round is not trained yet"


def test_each_fault_is_named_and_the_rest_is_looked_at(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("main", "other"))
    make_model(tmp_path / "chatty", teacher=True, tokenizer="chat")
    outcome = cli(
        *("doctor", "-c", config, "--json", "--engines"),
        *("--set", "teachers.main.model=nowhere", "--set", "teachers.other.model=chatty"),
    )
    found = findings(outcome.result)
    assert outcome.code == outcome.result["exit_code"] == 2
    assert "nowhere" in found["teacher main"]["words"]
    assert found["teacher other"]["exit_code"] == 3
    assert found["student"]["state"] == "ok"
    assert "teacher = student" not in found, "no model is loaded where something is wrong"


def test_a_careless_store_fails_and_with_a_single_writer_deserves_a_look(
    tmp_path: Path, careless_server: S3Account, use_s3: UseS3, cli: Cli
) -> None:
    config = write_run(tmp_path, root=use_s3(careless_server))
    refused = cli("doctor", "-c", config, "--json")
    found = findings(refused.result)["store"]
    assert (refused.code, found["state"], found["exit_code"]) == (6, "failed", 6)
    assert "storage.single_writer" in found["words"]
    alone = cli.ok("doctor", "-c", config, "--set", "storage.single_writer=true")
    assert findings(alone)["store"]["state"] == "warning"


def test_an_orphan_is_named_with_its_pid(run_copy: Path, cli: Cli) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    mark = f"{gone.pid}:{psutil.Process(gone.pid).create_time():.2f}"
    gone.wait()
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, OWNER: mark})
    try:
        found = findings(cli.ok("doctor", "-c", run_copy / "run.toml"))["orphans"]
    finally:
        orphan.kill()
        orphan.wait()
    assert found["state"] == "warning" and orphan.pid in found["figures"]["pids"]
    assert f"kill -9 {orphan.pid}" in found["words"]


def neighbourly(original: Score) -> Score:
    """Return a score method whose numbers depend on how many rows are scored together."""

    def score(
        self: HfEngine, prompts: Sequence[Ids], responses: Sequence[Ids], **given: Any
    ) -> Scores:
        found: Scores = original(self, prompts, responses, **given)
        moved = found.token_logprob - np.float32(0.5 * (len(prompts) - 1))
        return Scores(**{**vars(found), "token_logprob": moved, "token_rank": found.token_rank + 1})

    return score


def backwards(original: Score) -> Score:
    """Return a score method whose top-k is in the wrong order."""

    def score(self: HfEngine, *rows: Any, **given: Any) -> Scores:
        found: Scores = original(self, *rows, **given)
        turned = {n: getattr(found, n)[:, ::-1] for n in ("topk_ids", "topk_logprobs")}
        return Scores(**{**vars(found), **turned})

    return score


@pytest.mark.parametrize(
    ("broken", "words"), [(neighbourly, "nats on average"), (backwards, "rank order")]
)
def test_scoring_stops_before_it_begins_where_an_engine_cannot_be_trusted(
    broken: Any, words: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path, changes=ON_HF)
    cli.ok("rollout", "-c", config, "--round", "0")
    monkeypatch.setattr(HfEngine, "score", broken(HfEngine.score))
    outcome = cli("score", "-c", config, "--round", "0")
    assert outcome.code == 4 and words in outcome.stderr
    storage = Storage(str(tmp_path / "store"))
    assert not list(storage.names("runs/tiny/rounds/0000/score/main/commits"))
    assert not any(list(storage.names(f"cache/{n}/commits")) for n in storage.names("cache"))
    doctor = cli("doctor", "-c", config, "--engines", "--json")
    assert doctor.code == 4 and words in findings(doctor.result)["noise of main"]["words"]


def test_noise_that_is_allowed_passes_and_is_reported(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path, changes=ON_HF)
    cli.ok("rollout", "-c", config, "--round", "0")
    monkeypatch.setattr(HfEngine, "score", neighbourly(HfEngine.score))
    result = cli.ok("score", "-c", config, "--round", "0", "--set", "score.noise_tolerance=9")
    assert 0.05 < result["noise"]["mean"] < 2 and result["noise"]["tokens"] > 0
    again = cli.ok("score", "-c", config, "--round", "0")
    assert again["noise"] is None, "nothing was scored, so nothing was tested"


def test_the_student_that_does_not_score_as_it_sampled_is_found(
    run_copy: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HfEngine.score

    def tempered(self: HfEngine, *rows: Any, **given: Any) -> Scores:
        found = original(self, *rows, **given)
        return Scores(**{**vars(found), "token_logprob": found.token_logprob * np.float32(1.5)})

    monkeypatch.setattr(HfEngine, "score", tempered)
    on_hf = [word for key, value in ON_HF.items() for word in ("--set", f"{key}={value}")]
    outcome = cli("doctor", "-c", run_copy / "run.toml", "--engines", "--json", *on_hf)
    assert outcome.code == 2
    assert "its draws are" in findings(outcome.result)["student samples"]["words"]
