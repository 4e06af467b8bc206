"""After a round a run goes on, stops at its target, or fails because the student got worse."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.gate import judge, mean_reverse_kl
from pipeline.runs.run import open_run
from schemas.errors import ConfigError, RegressionError
from schemas.records.scores import ScoreManifest
from tests.support.forged import forged
from tests.support.minimal import EVAL, message, parse
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
    higher = second.model_copy(update={"reverse_kl": (first.reverse_kl or 0.0) + 0.5})
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
    def score(gap: float | None, tokens: int) -> ScoreManifest:
        fields = {"reverse_kl": gap, "tokens": tokens}
        return ScoreManifest.model_construct(**fields)  # type: ignore[arg-type]

    assert mean_reverse_kl([]) is None
    assert mean_reverse_kl([None, score(None, 5)]) is None
    assert mean_reverse_kl([score(1.0, 30), None, score(3.0, 10)]) == pytest.approx(1.5)


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
