"""After a round a run goes on, stops at its target, or fails because the student got worse."""

import json
import math
import shutil
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.gate import Gap, judge, known_gap, mean_reverse_kl, reverse_kl_of
from pipeline.runs.run import open_run
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, RegressionError
from schemas.records.scores import ScoreManifest
from tests.support.forged import forged
from tests.support.minimal import EVAL, message, minimal_run, parse
from tests.support.paperrun import put, put_scores, put_train
from tests.support.runs import Cli
from tests.support.tiny import write_run


@pytest.fixture(scope="module")
def graded(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the TOML of a run whose student had 50 % at first, then 80 % and 40 %."""
    folder = tmp_path_factory.mktemp("graded") / "run"
    shutil.copytree(finished_run, folder)
    path = write_run(folder, changes={"train.save_steps": 1})
    places = ("baseline/student", "rounds/0000/eval", "rounds/0001/eval")
    for place, accuracy in zip(places, (0.5, 0.8, 0.4), strict=True):
        file = folder / "store" / "runs" / "tiny" / place / "manifest.json"
        file.write_bytes(forged(json.loads(file.read_text()) | {"accuracy": accuracy}))
    return path


def test_without_a_gate_a_run_goes_on(graded: Path, cli: Cli) -> None:
    said = cli.ok("gate", "-c", graded, "--round", "1")
    assert (said["decision"], said["accuracy"]) == ("go", 0.4)
    assert said["reverse_kl"] > 0


@pytest.mark.parametrize(
    ("round_index", "limit", "decision"),
    [
        (0, "gate.target_accuracy=0.8", "stop"),
        (0, "gate.target_accuracy=0.81", "go"),
        (1, "gate.target_accuracy=0.8", "go"),
        (0, "gate.target_reverse_kl=1000.0", "stop"),
        (0, "gate.target_reverse_kl=1e-9", "go"),
        (0, "gate.max_accuracy_drop=0.1", "go"),
        (1, "gate.max_accuracy_drop=0.41", "go"),
        (1, "gate.max_reverse_kl_rise=1000.0", "go"),
    ],
)
def test_a_target_or_a_limit_decides(
    graded: Path, cli: Cli, round_index: int, limit: str, decision: str
) -> None:
    said = cli.ok("gate", "-c", graded, "--round", str(round_index), "--set", limit)
    assert said["decision"] == decision
    assert (decision == "stop") == ("is reached" in said["reason"])


def test_a_student_that_got_worse_ends_with_exit_8(graded: Path, cli: Cli) -> None:
    found = cli("gate", "-c", graded, "--round", "1", "--set", "gate.max_accuracy_drop=0.39")
    assert found.code == RegressionError.exit_code == 8
    assert "accuracy 40.0%" in found.stderr and "down from 80.0%" in found.stderr
    assert "gate.max_accuracy_drop = 0.39" in found.stderr and "checkpoints/0001" in found.stderr


def test_a_first_round_is_held_against_the_student_as_it_came(
    graded: Path, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(graded.parent, tmp_path / "run")
    path = write_run(tmp_path / "run", changes={"train.save_steps": 1})
    file = (
        tmp_path / "run" / "store" / "runs" / "tiny" / "rounds" / "0000" / "eval" / "manifest.json"
    )
    file.write_bytes(forged(json.loads(file.read_text()) | {"accuracy": 0.2}))
    found = cli("gate", "-c", path, "--round", "0", "--set", "gate.max_accuracy_drop=0.25")
    assert found.code == 8 and "down from 50.0%" in found.stderr


def test_a_reverse_kl_that_rises_ends_with_exit_8(graded: Path) -> None:
    run = open_run(load_config(graded, ["gate.max_reverse_kl_rise=1e-9"]))
    first, second = run.score(0, "main"), run.score(1, "main")
    assert first is not None and second is not None
    key = run.manifest_key(1, "score/main")
    higher = second.model_copy(update={"reverse_kl": (first.reverse_kl or 0.0) + 50.0})
    file = graded.parent / "store" / key
    text = file.read_text()
    file.write_text(higher.model_dump_json())
    try:
        with pytest.raises(RegressionError, match="max_reverse_kl_rise"):
            judge(run, 1)
    finally:
        file.write_text(text)


def test_a_round_that_is_not_trained_cannot_be_judged(graded: Path, cli: Cli) -> None:
    found = cli("gate", "-c", graded, "--round", "5")
    assert found.code == ConfigError.exit_code and "opd train --round 5" in found.stderr


def test_a_mean_over_teachers_is_weighted_by_tokens() -> None:
    def score(gap: float | None, tokens: int, error: float | None = None) -> ScoreManifest:
        fields = {"reverse_kl": gap, "tokens": tokens, "reverse_kl_error": error}
        return ScoreManifest.model_construct(**fields)  # type: ignore[arg-type]

    assert mean_reverse_kl([]) is None
    assert mean_reverse_kl([None, score(None, 5)]) is None
    assert mean_reverse_kl([score(1.0, 30), None, score(3.0, 10)]) == Gap(1.5)
    both = mean_reverse_kl([score(1.0, 30, 0.4), score(3.0, 10, 1.6)])
    assert both is not None and both.value == 1.5 and both.error == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("gaps", "limit", "decision"),
    [
        ((0.5, 0.4), "gate.target_reverse_kl=0.41", "go"),  # 0.4 ± 0.02 may be above it
        ((0.5, 0.4), "gate.target_reverse_kl=0.45", "stop"),
        ((0.5, 0.6), "gate.max_reverse_kl_rise=0.09", "go"),  # as much as chance may make of 0.09
        ((0.5, 0.6), "gate.max_reverse_kl_rise=0.04", "fail"),
    ],
)
def test_a_difference_within_the_error_decides_nothing(
    memory: Storage, gaps: tuple[float, float], limit: str, decision: str
) -> None:
    run = minimal_run(memory, limit)
    for index, gap in enumerate(gaps):
        put_scores(run, index, "main", reverse_kl=gap, reverse_kl_error=0.02)
        put_train(run, index)
    if decision == "fail":
        with pytest.raises(RegressionError, match=r"reverse KL 0.6000 ± 0.0200 nats, up from 0.5"):
            judge(run, 1)
        return
    found = judge(run, 1)
    assert (found.decision, found.reverse_kl, found.reverse_kl_error) == (decision, gaps[1], 0.02)


def test_of_a_tempered_rollout_the_learners_figure_counts(memory: Storage) -> None:
    run = minimal_run(memory, "rollout.temperature=0.7", "gate.target_reverse_kl=0.3")
    put_scores(run, 0, "main", reverse_kl=0.1, reverse_kl_error=0.001)
    assert reverse_kl_of(run, 0) is None, "it is of what was drawn from"
    trained = put_train(run, 0)
    assert reverse_kl_of(run, 0) == Gap(0.1, 0.001), "an older opd has trained it"
    own = trained.model_copy(update={"reverse_kl": 0.5, "reverse_kl_error": 0.05})
    put(run, run.manifest_key(0, "train"), own)
    assert reverse_kl_of(run, 0) == Gap(0.5, 0.05)
    assert known_gap([run.score(0, "main")], own) == Gap(0.5, 0.05), "as the report shows it"
    assert judge(run, 0).decision == "go"


def test_the_reverse_kl_of_a_tempered_rollout_is_that_of_the_student(
    tmp_path: Path, cli: Cli
) -> None:
    changes = {
        "eval": None,
        "teachers.main.model": "student",  # so that it is 0, whatever is drawn
        "rollout.temperature": 0.6,
        "loss.kind": "reverse_kl",
        "gate.target_reverse_kl": 1e-4,
    }
    config = write_run(tmp_path, changes=changes)
    outcome = cli("run", "-c", config, "--json")
    assert outcome.code == 0 and "stopped: round 0" in outcome.stderr
    row = cli.ok("status", "-c", config)["rounds"][0]
    assert abs(row["reverse_kl"]) < 1e-5 and row["reverse_kl_error"] < 1e-5
    scored = open_run(load_config(config)).score(0, "main")
    assert scored is not None and (scored.reverse_kl or 0.0) > 0.02


def test_its_error_is_that_of_a_mean_over_rows(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    rollout, scored = run.rollout(0), run.score(0, "main")
    assert rollout is not None and scored is not None and scored.reverse_kl is not None
    rows = []
    for unit, score in zip(rollout.units, scored.units, strict=True):
        drawn = read_rollout(run.storage, unit.shard).to_pylist()
        known = read_scores(run.storage, score.shard, scorer=scored.scorer).to_pylist()
        for one, other in zip(drawn, known, strict=True):
            pairs = zip(one["rollout_student_logprobs"], other["token_logprob"], strict=True)
            gaps = [mu - max(p, -30.0) for mu, p in pairs]
            rows.append((sum(gaps), len(gaps)))
    tokens = sum(length for _, length in rows)
    mean = sum(total for total, _ in rows) / tokens
    left = sum((total - mean * length) ** 2 for total, length in rows)
    error = math.sqrt(left * len(rows) / (len(rows) - 1)) / tokens
    assert scored.reverse_kl == pytest.approx(mean, rel=1e-6)
    assert scored.reverse_kl_error == pytest.approx(error, rel=1e-5)


def test_a_gate_on_accuracy_needs_an_eval() -> None:
    assert "needs an [eval]" in message("gate.target_accuracy=0.9")
    assert parse(*EVAL, "gate.target_accuracy=0.9").gate is not None
    assert parse("gate.target_reverse_kl=0.1").gate is not None


def test_a_gate_is_no_part_of_what_a_run_is(graded: Path, cli: Cli) -> None:
    done = cli.ok("run", "-c", graded, "--set", "gate.target_reverse_kl=0.5")
    assert done["units"] == 0


def test_a_run_stops_at_its_target_and_goes_on_when_it_is_raised(tmp_path: Path, cli: Cli) -> None:
    path = write_run(tmp_path, changes={"eval": None, "prompts.eval": None, "run.rounds": 3})
    stop, go = "gate.target_reverse_kl=1000.0", "gate.target_reverse_kl=1e-9"
    first = cli("run", "-c", path, "--set", stop, "--json")
    assert first.code == 0 and "stopped: round 0" in first.stderr
    again = cli("run", "-c", path, "--set", stop, "--json")
    assert again.result["units"] == 0 and "stopped: round 0" in again.stderr
    assert cli.ok("run", "-c", path, "--rounds", "2", "--set", go)["round"] == 1
