"""The page in a real browser: drawn, used by pointer and keys, asking nobody, running nothing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import page
from tests.support.airflowhost import airflow_bin, find_chromium
from tests.support.reports import harmful, view_of
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.slow
VIEWS = ("wide", "phone", "dark")


@pytest.fixture(scope="module")
def seen(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a browser showed of a page whose text would do harm."""
    program, chromium = airflow_bin() / "python", find_chromium()
    folder = tmp_path_factory.mktemp("page")
    text = page([harmful(view_of(finished_run))], written_at="today")
    (folder / "page.html").write_text(text, encoding="utf-8")
    script = REPOSITORY / "tests" / "support" / "reportshot.py"
    command = [str(program), str(script), str(folder / "page.html"), str(folder), chromium]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_fails_is_fetched_or_runs(seen: dict[str, Any], view: str) -> None:
    found = seen[view]
    assert (found["told"], found["asked"], found["harm"], found["images"]) == ([], [], "", 0)
    assert "<img src=x onerror=window.harm=2>" in found["text"]
    assert r"\x1b[31m\u202e\x00\ud800" in found["text"]
    assert not set(found["text"]) & set("\x1b\u202e\x00")


@pytest.mark.parametrize("view", VIEWS)
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_screen(
    seen: dict[str, Any], view: str
) -> None:
    found = seen[view]
    assert found["charts"] > 20
    assert (found["empty"], found["overflow"], found["overflow_side"]) == (0, 0, 0)


def test_dark_is_dark(seen: dict[str, Any]) -> None:
    assert seen["dark"]["paper"] != seen["wide"]["paper"] == seen["phone"]["paper"]
    assert seen["dark"]["line"] != seen["wide"]["line"] == seen["phone"]["line"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_chart_tells_its_points_to_pointer_and_keys(seen: dict[str, Any], view: str) -> None:
    first, second = seen[view]["keys"]
    assert "round 0, student" in first and "round 1, student" in second
    assert seen[view]["pointed"] in (first, second)


@pytest.mark.parametrize("view", VIEWS)
def test_a_token_tells_what_both_models_thought(seen: dict[str, Any], view: str) -> None:
    for place, told in ((1, seen[view]["hovered"]), (4, seen[view]["keyed"])):
        assert f"token {place}, id" in told
        assert "its rank" in told and "the teacher's likeliest" in told
        assert "likeliest ids of the student: not stored" in told


@pytest.mark.parametrize("view", VIEWS)
def test_the_same_prompt_stands_side_by_side(seen: dict[str, Any], view: str) -> None:
    assert seen[view]["every"] == "16 transcripts"
    assert "prompts in several samples" in seen[view]["side"]
    assert seen[view]["together"] == 2
