"""Where graders come from: a file beside the configuration, or an installed package."""

import os
from pathlib import Path

import pytest

from pipeline.rewards.location import Grader, find_grader
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import EvalSection
from schemas.errors import ConfigError
from tests.rewards.test_graders import graded

GRADER = "def grade(response, reference, metadata):\n    return 1\n"


def found(reward: str, folder: Path | str) -> Grader:
    return find_grader(EvalSection(reward=reward), ConfigPlace(str(folder)))


def test_the_files_bytes_are_part_of_what_a_grader_is(tmp_path: Path) -> None:
    path = tmp_path / "grader.py"
    path.write_text(GRADER)
    before = found("grader.py:grade", tmp_path).identity
    assert before == found("grader:grade", tmp_path).identity and len(before) == 1
    path.write_text(GRADER + "\n")
    assert found("grader.py:grade", tmp_path).identity != before
    assert found("exact_match", tmp_path).identity == ()


@pytest.mark.parametrize(
    "reward",
    [
        "../grader.py:grade",
        "/tmp/grader.py:grade",
        "sub/grader.py:grade",
        "sub.grader:grade",
        "..py:grade",
        ".py:grade",
        "grader.py:",
        "grader.py:a.b",
        "grader.py:lambda",
        "grader.py:grade:x",
        "grader.pyc:grade",
        "grader py:grade",
        "C:\\grader.py:grade",
        "grader\n.py:grade",
        ":",
        "",
        "exact match",
        "last_number ",
        "\u202egrader",
    ],
)
def test_any_other_form_is_refused_with_the_forms_that_there_are(reward: str) -> None:
    with pytest.raises(ValueError, match="entry point of the group opd.graders"):
        EvalSection(reward=reward)


@pytest.mark.parametrize(
    "reward", ["os:system", "builtins:print", "subprocess:call", "grader:grade"]
)
def test_a_module_is_looked_for_in_the_folder_alone(reward: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no {tmp_path}.*beside the configuration"):
        found(reward, tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(:\n", "is no Python"),
        ("\0", "is no Python"),
        ("# coding: no-such\n", "is no Python"),
        ("(" * 5000, "is no Python"),
        ("def other(a, b, c): ...\n", "has no function 'grade'; it has other"),
        ("def grade(response, reference): ...\n", "defines 'response, reference'"),
        ("def grade(): ...\n", "called as grade"),
        ("def grade(a, b, c, d): ...\n", "called as grade"),
        ("def grade(a, b, c, *, d): ...\n", "called as grade"),
        ("async def grade(a, b, c): ...\n", "is async"),
    ],
)
def test_a_file_without_such_a_function_is_refused_and_not_run(
    source: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "grader.py").write_text(source)
    with pytest.raises(ConfigError, match="grader.py") as caught:
        found("grader.py:grade", tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "def grade(a, b, c=None): ...\n",
        "def grade(*all): ...\n",
        "def grade(a, /, b, c, d=1, *, e=2, **f): ...\n",
        "import functools\n@functools.cache\ndef grade(a): ...\n",
        "if True:\n    def grade(a, b, c): ...\n",
        "class grade: ...\n",
        "grade = print\n",
        "from math import gcd as grade\n",
        "raise SystemExit\ndef grade(a, b, c): ...\n",
    ],
)
def test_what_only_running_it_would_tell_is_left_to_its_process(
    source: str, tmp_path: Path
) -> None:
    (tmp_path / "grader.py").write_text(source)
    assert found("grader.py:grade", tmp_path).start["name"] == "grade"


def test_a_link_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside.py"
    (inside / "data").mkdir(parents=True)
    (inside / "data" / "real.py").write_text(GRADER)
    outside.write_text(GRADER)
    (inside / "kept.py").symlink_to("data/real.py")
    (inside / "out.py").symlink_to(outside)
    (inside / "circle.py").symlink_to("circle.py")
    (inside / "folder.py").mkdir()
    (inside / "long.py").write_bytes(b"#" * (1 << 20) + b"#")
    os.mkfifo(inside / "pipe.py")
    assert found("kept.py:grade", inside).is_own
    for name, words in (
        ("out", "is a link to .*outside.py, outside the folder"),
        ("circle", "cannot be read"),
        ("folder", "is no file of at most"),
        ("long", "is no file of at most"),
        ("pipe", "is no file of at most"),
    ):
        with pytest.raises(ConfigError, match=words):
            found(f"{name}.py:grade", inside)


def test_code_is_not_taken_from_a_store() -> None:
    with pytest.raises(ConfigError, match="code is not taken from a store"):
        found("grader.py:grade", "s3://bucket/runs")


def test_a_package_may_declare_a_grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "judge-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: judge\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[opd.graders]\nhalf = judged.inside:half\n")
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "inside.py").write_text("def half(r, f, m):\n    return 0.5\n")
    with pytest.raises(ConfigError, match="'half' is no entry point of the group opd.graders"):
        found("half", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert found("half", tmp_path).identity == ("judge", "1.2")
    assert graded("half", ("", None)) == [0.5]
    with pytest.raises(ConfigError, match="of which installed are half"):
        found("third", tmp_path)
