"""Samples of a teacher: to the round's prompts that it teaches, resumed, graded, and a gate."""

import json
import shutil
import signal
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.shards.rollouts import read_rollout
from pipeline.store.storage import Storage
from tests.support.children import run_until_killed
from tests.support.rounds import forget
from tests.support.runs import Cli, finish, snapshot, start_function
from tests.support.tiny import make_model, write_run

UNITS, ROWS = 4, 16
FOLDER = "runs/tiny/rounds/0000/samples/main"
GRADER = "def grade(response, reference, metadata):\n    return int(reference) % 2\n"


def opened(config: Path) -> Run:
    return open_run(load_config(config))


def test_a_teacher_answers_the_prompts_of_a_round_and_is_graded(run_copy: Path, cli: Cli) -> None:
    (run_copy / "grader.py").write_text(GRADER)
    config = write_run(run_copy, changes={"reward.grader": "grader.py:grade"})
    early = cli("grade", "-c", config, "--round", "0", "--teacher", "main")
    assert early.code == 2 and "opd rollout --round 0 --teacher main" in early.stderr
    before = opened(config).rollout(0)
    said = cli.ok("rollout", "-c", config, "--round", "0", "--teacher", "main")
    assert (said["stage"], said["teacher"], said["units"]) == ("samples", "main", UNITS)
    run = opened(config)
    student, teacher = run.rollout(0), run.rollout(0, "main")
    assert student == before and student is not None and teacher is not None
    assert teacher.policy_version != student.policy_version
    tables = [
        [read_rollout(run.storage, unit.shard) for unit in one.units] for one in (student, teacher)
    ]
    for mine, theirs in zip(*tables, strict=True):
        for name in ("prompt_id", "sample_index", "seed"):
            assert mine.column(name).equals(theirs.column(name))
        assert not mine.column("response_ids").equals(theirs.column("response_ids"))
        assert pc.unique(theirs.column("policy_version")).to_pylist() == [teacher.policy_version]
    again = cli.ok("rollout", "-c", config, "--round", "0", "--teacher", "main")
    assert (again["units"], again["manifest"]) == (0, said["manifest"])
    graded = cli.ok("grade", "-c", config, "--round", "0", "--teacher", "main")
    assert (graded["teacher"], graded["rows"], graded["units"]) == ("main", ROWS, UNITS)
    assert run.rewards(0) is None and run.rewards(0, "main") is not None
    status = cli.ok("status", "-c", config)["rounds"][0]["stages"]["samples"]
    assert (status["state"], status["units_done"], status["units"]) == ("done", UNITS, UNITS)
    assert "samples" in cli("status", "-c", config).stdout
    kept = cli.ok("cache", "gc", "-c", config, "--older-than", "0", "--delete")["keys"]
    assert not {unit.shard.key for unit in teacher.units} & set(kept)


def test_a_teacher_answers_only_what_it_teaches(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("a", "b"))
    cli.ok("rollout", "-c", config, "--round", "1", "--teacher", "b")  # no student is needed
    run = opened(config)
    found = run.rollout(1, "b")
    assert found is not None and 0 < found.rows < ROWS and run.rollout(1) is None
    for unit in found.units:
        rows = read_rollout(run.storage, unit.shard)
        assert pc.unique(rows.column("teacher")).to_pylist() == ["b"]
    unknown = cli("rollout", "-c", config, "--round", "0", "--teacher", "c")
    assert unknown.code == 2 and "known: a, b" in unknown.stderr


def test_a_teacher_with_another_vocabulary_is_refused_in_words(tmp_path: Path, cli: Cli) -> None:
    make_model(tmp_path / "main", teacher=True, tokenizer="chat")
    config = write_run(tmp_path, changes={"run.admission": "static"})
    refused = cli("rollout", "-c", config, "--round", "0", "--teacher", "main")
    assert refused.code == 3 and "tokenizer" in refused.stderr
    assert not (tmp_path / "store" / FOLDER).exists()


@pytest.mark.slow
def test_sampling_by_a_teacher_that_is_killed_at_its_writes_ends_as_in_peace(
    run_copy: Path, tmp_path: Path, cli: Cli
) -> None:
    quiet = tmp_path / "quiet"
    shutil.copytree(run_copy, quiet)
    config = write_run(quiet)
    cli.ok("rollout", "-c", config, "--round", "0", "--teacher", "main")
    attempts = 0
    while True:
        command = "rollout --round 0 --teacher main"
        child = start_function(
            run_until_killed, str(run_copy / "run.toml"), 5 + attempts, attempts % 2 == 0, command
        )
        outcome = finish(child)
        if outcome.code == 0:
            break
        assert outcome.code == -signal.SIGKILL, outcome.stderr
        attempts += 1
    assert attempts >= 2
    before, after = (snapshot(Storage(str(f / "store")), FOLDER) for f in (quiet, run_copy))
    assert before == after and len(before) == UNITS + 2


def test_a_run_distils_only_where_its_teacher_answers_right(run_copy: Path, cli: Cli) -> None:
    (run_copy / "grader.py").write_text(GRADER)
    changes: dict[str, object] = {
        "run.name": "gated",
        "run.rounds": 1,
        "eval": None,
        "reward.grader": "grader.py:grade",
        "reward.unfinished": "grade",
        "loss.gate.teacher": "samples",
    }
    config = write_run(run_copy, changes=changes, file="gated.toml")
    calls = cli.ok("plan", "-c", config, "--round", "0", "--workers", "2")["rollout"]
    assert calls[2:] == [{"teacher": "main", "worker": 0}, {"teacher": "main", "worker": 1}]
    cli.ok("run", "-c", config)
    trained = opened(config).train(0)
    assert trained is not None
    rows = [
        row
        for unit in (opened(config).rollout(0) or trained).units  # type: ignore[union-attr] # it is there
        for row in read_rollout(opened(config).storage, unit.shard).to_pylist()
    ]
    right = sum(int(row["reference"]) % 2 for row in rows)
    assert trained.gated == {"whole": right, "part": 0, "none": len(rows) - right}
    assert 0 < right < len(rows)
    answers = opened(config).rewards(0, "main")
    assert answers is not None
    assert {unit.shard.key for unit in answers.units} < set(trained.shards)
    forget(run_copy, *(f"runs/gated/rounds/0000/{name}" for name in ("train", "samples")))
    forget(run_copy, "runs/gated/checkpoints/0001")
    refused = cli("train", "-c", config, "--round", "0")
    assert refused.code == 2 and "opd grade --round 0 --teacher main" in refused.stderr
    assert json.loads((run_copy / "store/runs/gated/run.json").read_text())["identity"][
        "loss.gate.teacher"
    ]
