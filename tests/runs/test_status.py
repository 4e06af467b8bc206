"""The state of a run and of its rounds."""

from pathlib import Path

from tests.support.runs import Cli


def test_status_of_one_round_has_its_figures_in_the_object(finished_run: Path, cli: Cli) -> None:
    said = cli.ok("status", "-c", finished_run / "run.toml", "--round", "1")
    assert [one["round"] for one in said["rounds"]] == [1]
    assert said["reverse_kl"] == said["rounds"][0]["reverse_kl"] > 0


def test_status_reports_every_round_with_its_figures(run_copy: Path, cli: Cli) -> None:
    status = cli.ok("status", "-c", run_copy / "run.toml")
    assert status["run"] == "tiny"
    assert [r["round"] for r in status["rounds"]] == [0, 1]
    for row in status["rounds"]:
        assert {s["state"] for s in row["stages"].values()} == {"done"}
        assert row["teacher_tokens"] > 0
        assert row["reused_rows"] == 0
        assert row["reverse_kl"] > 0
        assert 0 <= row["accuracy"] <= 1
    assert status["teacher_accuracy"] is not None
    assert "already" not in cli("status", "-c", run_copy / "run.toml").stdout
