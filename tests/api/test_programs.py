"""The programs of examples/ that use the Python API, run on a finished run."""

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def ran(name: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a program of the examples on a configuration and return its names."""
    monkeypatch.setenv("OPD_CONFIG", str(config))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_kl_of_a_cache_is_plotted_by_position(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ran("read_cache.py", finished_run / "run.toml", monkeypatch)
    printed = capsys.readouterr().out
    [first] = names["run"].status(0).rounds
    assert f"reverse KL {first.reverse_kl:.4f} nats" in printed
    assert printed.count("█" * 40) == 1
    assert names["by_position"]["position"].to_list() == list(range(names["by_position"].height))


def test_two_losses_are_tried_without_a_teacher(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ran("sweep_losses.py", run_copy / "run.toml", monkeypatch)["table"]
    assert table["loss"].to_list() == ["jsd", "reverse_kl"]
    assert table["teacher tokens"].to_list() == [0, 0]
    assert table["accuracy"].null_count() == 0


def test_a_round_is_trained_with_a_grader_of_ones_own(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(EXAMPLES / "rewards.py", run_copy)
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    names = ran("own_grader.py", run_copy / "run.toml", monkeypatch)
    assert names["run"].config.reward.grader == "rewards.py:final_number"
    assert names["graded"].rows == names["trained"].rows == 16
    assert 0 <= names["first"].reward <= 1
    del sys.modules["rewards"]


@pytest.mark.parametrize("name", ["read_cache.py", "sweep_losses.py", "own_grader.py"])
def test_the_page_of_examples_leads_to_each_program(name: str) -> None:
    assert f"]({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert (EXAMPLES / name).read_text(encoding="utf-8").count("\n# %% ") >= 3
