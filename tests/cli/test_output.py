"""What commands write for schedulers."""

import json
from pathlib import Path

import pytest

from tests.support.runs import Cli


def test_json_goes_to_the_file_that_a_scheduler_names(
    finished_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_JSON_FILE", str(tmp_path / "return.json"))
    said = cli.ok("gate", "-c", finished_run / "run.toml", "--round", "0")
    assert json.loads((tmp_path / "return.json").read_text()) == said
    assert cli("gate", "-c", finished_run / "run.toml", "--round", "9", "--json").code == 2
    assert json.loads((tmp_path / "return.json").read_text())["exit_code"] == 2


def test_a_line_of_scores_names_its_teacher(run_copy: Path, cli: Cli) -> None:
    config = run_copy / "run.toml"
    said = cli("score", "-c", config, "--round", "0").stdout
    assert "already done, by teacher main, reverse KL" in said
