"""Evaluation with a grader of the user's own: what it is pinned to, and when it is looked for."""

from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
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
