"""The state of a run and of its rounds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.leases import at_work
from pipeline.runs.run import Run
from pipeline.runs.status import AT_ONCE, run_status
from pipeline.runs.tasks import next_round, wants_eval
from pipeline.store.storage import Storage
from schemas.keys import commit_key
from tests.support.minimal import EVAL, minimal_run
from tests.support.paperrun import (
    TOKENS,
    UNITS,
    put_eval,
    put_plan,
    put_rollout,
    put_scores,
    put_train,
)
from tests.support.runs import Cli

STAGES = ("rollout", "score", "train", "eval")


def test_status_of_one_round_has_its_figures_in_the_object(finished_run: Path, cli: Cli) -> None:
    said = cli.ok("status", "-c", finished_run / "run.toml", "--round", "1")
    assert [one["round"] for one in said["rounds"]] == [1]
    assert said["reverse_kl"] == said["rounds"][0]["reverse_kl"] > 0


def test_status_reports_every_round_with_its_figures(run_copy: Path, cli: Cli) -> None:
    status = cli.ok("status", "-c", run_copy / "run.toml")
    assert status["run"] == "tiny"
    assert [r["round"] for r in status["rounds"]] == [0, 1]
    for row in status["rounds"]:
        states = {name: stage["state"] for name, stage in row["stages"].items()}
        assert states == dict.fromkeys(STAGES, "done") | {"grade": "off", "samples": "off"}
        assert row["teacher_tokens"] > 0
        assert row["reused_rows"] == 0
        assert row["reverse_kl"] > 0
        assert 0 <= row["accuracy"] <= 1
    assert status["teacher_accuracy"] is not None
    assert "already" not in cli("status", "-c", run_copy / "run.toml").stdout


def run_with(storage: Storage, *overrides: str) -> Run:
    return minimal_run(storage, "run.rounds=3", *overrides)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_an_eval_comes_every_few_rounds_and_after_the_last(
    rounds: int, planned: int, every: int
) -> None:
    run = minimal_run(
        Storage("memory://eval"), *EVAL, f"run.rounds={planned}", f"eval.every_rounds={every}"
    )
    found = [index for index in range(rounds) if wants_eval(run, index, rounds)]
    assert found == sorted({*range(every - 1, rounds, every), rounds - 1})


def test_without_an_eval_section_no_round_wants_one(memory: Storage) -> None:
    assert not wants_eval(run_with(memory), 2, 3)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("rounds", range(6))
def test_the_next_round_is_the_first_that_is_not_finished(
    memory: Storage, rounds: int, every: int
) -> None:
    run = minimal_run(memory, *EVAL, f"eval.every_rounds={every}")
    for finished in range(rounds):
        assert next_round(run, rounds) == finished
        put_train(run, finished)
        if wants_eval(run, finished, rounds):
            assert next_round(run, rounds) == finished  # it is not graded yet
            put_eval(run, finished)
    assert next_round(run, rounds) == rounds


def states(run: Run, index: int = 0) -> dict[str, tuple[str, int]]:
    stages = run_status(run, index).rounds[0].stages
    return {name: (stage.state, stage.units_done) for name, stage in stages.items()}


def test_a_stage_is_missing_then_partial_then_done(memory: Storage) -> None:
    run = run_with(memory, *EVAL)
    assert run_status(run).rounds == run_status(run, 0).rounds == []
    put_plan(run, 0)
    missing = dict.fromkeys(("rollout", "score", "train", "eval"), ("missing", 0))
    missing |= {"grade": ("off", 0), "samples": ("off", 0)}
    assert states(run) == missing
    for stage in ("rollout", "score/main"):
        memory.put(commit_key(run.stage_folder(0, stage), "u00000"), b"{}")
    memory.put(commit_key(run.stage_folder(0, "train"), "s00001"), b"{}")
    assert states(run) == missing | {
        "rollout": ("partial", 1),
        "score": ("partial", 1),
        "train": ("partial", 0),
    }
    put_rollout(run, 0)
    put_scores(run, 0, "main")
    put_train(run, 0, steps=3)
    put_eval(run, 0, accuracy=0.75)
    assert states(run) == {
        "rollout": ("done", UNITS),
        "grade": ("off", 0),
        "samples": ("off", 0),
        "score": ("done", UNITS),
        "train": ("done", 3),
        "eval": ("done", UNITS),
    }
    (only,) = run_status(run).rounds
    assert {stage.tokens for stage in only.stages.values() if stage.state == "done"} == {TOKENS}
    assert (only.accuracy, only.reverse_kl, only.teacher_tokens) == (0.75, 0.5, 7)


def test_scores_are_done_when_every_teacher_has_scored(memory: Storage) -> None:
    run = run_with(memory, 'teachers.math={model="math"}')
    put_plan(run, 0)
    put_scores(run, 0, "math")
    assert states(run)["score"] == ("partial", UNITS)
    put_scores(run, 0, "main", reused_rows=3)
    assert states(run)["score"] == ("done", 2 * UNITS)
    assert run_status(run).rounds[0].reused_rows == 4


def test_without_an_eval_section_it_is_off_and_rounds_end_where_none_has_begun(
    memory: Storage,
) -> None:
    run = run_with(memory)
    for index in (0, 2):
        put_plan(run, index)
    assert states(run)["eval"] == ("off", 0)
    assert [found.round for found in run_status(run).rounds] == [0]
    assert [found.round for found in run_status(run, 2).rounds] == [2]


def test_status_says_what_comes_next_and_who_is_at_work(memory: Storage) -> None:
    run = run_with(memory)
    assert (run_status(run).next_round, run_status(run).next_stage) == (0, "rollout")
    for index in range(2):
        put_rollout(run, index)
    put_scores(run, 0, "main")
    put_train(run, 0)
    with at_work(memory, run.stage_folder(1, "score/main"), "u00000"):
        status = run_status(run)
    assert (status.next_round, status.next_stage) == (1, "score")
    assert [stage.is_running for stage in status.rounds[1].stages.values()] == [
        name == "score" for name in status.rounds[1].stages
    ]
    assert not status.is_over and status.seconds_left is None
    assert not run_status(run, 1).is_over and run_status(run, 0).is_over


def test_many_rounds_are_all_told_in_order(memory: Storage) -> None:
    run = minimal_run(memory, f"run.rounds={2 * AT_ONCE + 3}")
    for index in range(2 * AT_ONCE + 1):
        put_plan(run, index)
    assert [one.round for one in run_status(run).rounds] == list(range(2 * AT_ONCE + 1))
