"""Evaluation with a grader of the user's own: what it is pinned to, and when it is looked for."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.shards.rollouts import read_rollout
from schemas.keys import STUDENT, baseline_folder, manifest_key
from tests.support.runs import Cli
from tests.support.tiny import write_run

GRADER = "def grade(response, reference, metadata):\n    return 0.5\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a run with a grader of its own."""
    (tmp_path / "grader.py").write_text(GRADER)
    return write_run(tmp_path, changes={"eval.reward": "grader.py:grade", "eval.teachers": False})


def baseline(config: Path) -> str:
    run: Run = open_run(load_config(config))
    manifest = run.baseline("student")
    assert manifest is not None and manifest.accuracy == 0.5 and manifest.standard_error == 0.0
    return manifest.fingerprint


def test_a_graders_file_is_part_of_what_an_evaluation_is(config: Path, cli: Cli) -> None:
    cli.ok("eval", "-c", config, "--baseline")
    before = baseline(config)
    manifest = config.parent / "store" / manifest_key(baseline_folder("tiny", STUDENT))
    manifest.unlink()
    cli.ok("eval", "-c", config, "--baseline")
    assert baseline(config) == before
    manifest.unlink()
    (config.parent / "grader.py").write_text(GRADER + "# another one\n")
    outcome = cli("eval", "-c", config, "--baseline")
    assert outcome.code == 3 and "Traceback" not in outcome.stderr


def test_a_lost_grader_ends_a_run_before_its_rounds_and_not_after_them(
    config: Path, cli: Cli
) -> None:
    cli.ok("eval", "-c", config, "--baseline")
    (config.parent / "grader.py").unlink()
    outcome = cli("run", "-c", config)
    assert outcome.code == 2 and "there is no" in outcome.stderr
    assert not (config.parent / "store" / "runs" / "tiny" / "rounds").exists()


def test_several_samples_of_a_prompt_tell_how_often_one_of_them_is_right(
    tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "grader.py").write_text(GRADER.replace("0.5", "len(response) % 2"))
    sampled = {"eval.samples_per_prompt": 4, "eval.temperature": 1.0, "eval.require_stop": False}
    changes = {"eval.reward": "grader.py:grade", "eval.teachers": False, **sampled}
    config = write_run(tmp_path, changes=changes)
    found = cli.ok("eval", "-c", config, "--baseline")
    run = open_run(load_config(config))
    manifest = run.baseline(STUDENT)
    assert manifest is not None
    tables = [read_rollout(run.storage, unit.shard) for unit in manifest.units]
    grades = np.concatenate([table.column("reward").to_numpy() for table in tables]).reshape(-1, 4)
    assert 0 < grades.mean() < 1, "the grades differ, or the test says nothing"
    assert found["accuracy"] == pytest.approx(grades.mean()) and found["samples"] == 4
    assert found["pass_at"]["4"] == pytest.approx(grades.max(axis=1).mean())
    assert list(found["pass_at"]) == ["1", "2", "4"] and manifest.pass_at == found["pass_at"]
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    again = cli("eval", "-c", config, "--baseline").stdout
    assert "student avg@4 " in again and ", pass@4 " in again


def test_the_status_tells_the_interval_of_the_last_graded_round(run_copy: Path, cli: Cli) -> None:
    config = run_copy / "run.toml"
    last = cli.ok("status", "-c", config)["rounds"][-1]
    assert 0 <= last["accuracy_low"] <= last["accuracy"] <= last["accuracy_high"] <= 1
    assert last["accuracy_low"] < last["accuracy_high"] and last["pass_at"] == {}
    assert f"accuracy of round {last['round']}: " in cli("status", "-c", config).stdout
