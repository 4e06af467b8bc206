"""The calls of a round: for workers and teachers, and none where nothing is due."""

from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from pipeline.runs.tasks import round_tasks
from schemas.errors import IdentityError
from tests.support.runs import Cli
from tests.support.tiny import write_run


def test_a_round_has_calls_for_workers_and_teachers(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("a", "b"))
    said = cli.ok("plan", "-c", config, "--round", "0", "--workers", "2")
    assert said["rollout"] == [{"worker": 0}, {"worker": 1}]
    assert said["score"] == [
        {"teacher": teacher, "worker": index} for teacher in ("a", "b") for index in (0, 1)
    ]
    assert [len(said[stage]) for stage in ("baseline", "train", "eval")] == [1, 1, 1]
    assert (said["state"], said["rows"]) == ("due", 16)


def test_some_teachers_alone_do_not_train(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, teachers=("a", "b"))
    said = cli.ok("plan", "-c", config, "--round", "0", "--teacher", "b")
    assert said["score"] == [{"teacher": "b", "worker": 0}]
    assert said["train"] == said["eval"] == []
    both = cli.ok("plan", "-c", config, "--round", "0", "--teacher", "b", "--teacher", "a")
    assert len(both["score"]) == 2 and both["train"]
    found = cli("plan", "-c", config, "--round", "0", "--teacher", "c")
    assert found.code == 2 and "no teacher 'c'; known: a, b" in found.stderr


def test_a_dry_run_and_rounds_that_are_not_asked_for_have_no_calls(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    for options in (["--dry-run"], ["--from-round", "1"]):
        said = cli.ok("plan", "-c", config, "--round", "0", *options)
        assert not any(said[stage] for stage in ("rollout", "score", "train", "eval"))
        assert said["state"] == ("due" if options == ["--dry-run"] else "outside")


def test_eval_comes_every_few_rounds_and_at_the_end(finished_run: Path) -> None:
    every = load_config(finished_run / "run.toml", ["eval.every_rounds=2"])
    calls = [round_tasks(open_run(every), i, rounds=range(3), workers=1).eval for i in range(3)]
    assert [bool(one) for one in calls] == [False, True, True]


def test_without_an_eval_nothing_is_graded(tmp_path: Path) -> None:
    changes = {"eval": None, "prompts.eval": None}
    run = open_run(load_config(write_run(tmp_path, changes=changes)))
    found = round_tasks(run, 0, rounds=range(1), workers=3)
    assert found.baseline == found.eval == [] and found.train


def test_a_round_with_rewards_has_one_call_that_grades(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path)
    plan = ("plan", "-c", config, "--round", "0", "--workers", "2")
    rewards = ("--set", "reward.grader=exact_match")
    assert cli.ok(*plan)["grade"] == cli.ok(*plan, *rewards, "--dry-run")["grade"] == []
    assert cli.ok(*plan, *rewards)["grade"] == [{"worker": 0}]
    assert cli.ok(*plan, *rewards)["objects"] > cli.ok(*plan)["objects"]


def test_after_the_target_no_round_is_due(finished_run: Path, cli: Cli) -> None:
    limit = ("--set", "gate.target_reverse_kl=1000.0")
    arguments = ("plan", "-c", finished_run / "run.toml", "--rounds", "4", *limit)
    assert cli.ok(*arguments, "--round", "2")["state"] == "stopped"
    assert cli.ok(*arguments, "--round", "3")["state"] == "waiting"
    assert "is stopped: round 1" in cli(*arguments, "--round", "2").stdout


def test_a_plan_of_other_settings_is_refused(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml", ["score.k=3"]))
    with pytest.raises(IdentityError, match="score.k"):
        round_tasks(run, 2, rounds=range(3), workers=1)
