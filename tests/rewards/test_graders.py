"""Grading: the graders that are built in, and code of the user's own in its process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.graders import Response, open_grader
from pipeline.rewards.location import find_grader
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import EvalSection
from schemas.errors import ConfigError
from tests.support.repository import REPOSITORY

Write = Callable[[str], None]
GRADE = "def grade(response, reference, metadata):\n"


def graded(
    reward: str,
    *rows: tuple[str, str | None] | tuple[str, str | None, str | None],
    folder: Path = REPOSITORY,
    pattern: str | None = None,
    timeout_s: float = 20.0,
) -> list[float]:
    """Return the grades of responses with their references, and metadata where it is given."""
    section = EvalSection(reward=reward, pattern=pattern)
    given = [
        Response(f"p{index}", row[0], row[1], row[2] if len(row) > 2 else None)
        for index, row in enumerate(rows)
    ]
    with open_grader(find_grader(section, ConfigPlace(str(folder))), timeout_s=timeout_s) as grade:
        return grade(given)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a writer of the grader's file."""

    def put(text: str) -> None:
        (tmp_path / "grader.py").write_text(text)

    return put


# --- built in ---


@given(st.text(), st.text())
def test_exact_match_compares_without_the_outer_spaces(response: str, reference: str) -> None:
    grades = graded("exact_match", (response, response), (f" \n{reference}\t", reference))
    assert grades == [1.0, 1.0]


def test_texts_are_equal_in_whichever_form_their_letters_are_written() -> None:
    assert graded("exact_match", ("caf\u00e9", "cafe\u0301"), ("caf\u00e9", "cafe")) == [1.0, 0.0]
    found = graded("regex", ("=cafe\u0301 ", " caf\u00e9"), pattern="=(.*)")
    assert found == [1.0]


def test_the_last_number_is_compared_by_its_value() -> None:
    rows = (
        ("it is 3/4.", "0.75"),
        ("none", "4"),
        ("2^53+1 = 9007199254740993", "9007199254740992"),
    )
    assert graded("last_number", *rows) == [1.0, 0.0, 0.0]


def test_a_reference_without_a_number_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"row 1 of its unit, prompt 'p1'.*no number \('four'\)"):
        graded("last_number", ("4", "4"), ("4", "four"))


@pytest.mark.parametrize(
    ("pattern", "response", "expected"),
    [
        (r"#(\d+)$", "12#34", 1.0),
        (r"#(\d+)$", "12#35", 0.0),
        (r"#(\d+)$", "12#34 ", 0.0),
        (r"\d+", "34 or 35", 1.0),
        (r"a(\d+)|b(\d+)", "b34", 0.0),
        (r"#(\d+)$", "nothing", 0.0),
        (r"(?s)\U0001f600.(\d+)", "\U0001f600\n34", 1.0),
    ],
)
def test_a_regex_gives_its_first_group_or_the_whole_match(
    pattern: str, response: str, expected: float
) -> None:
    assert graded("regex", (response, "34"), pattern=pattern) == [expected]


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "a{99999999999999999999}", "(?P<1>a)", "\\"])
def test_a_bad_pattern_is_named_with_the_configuration(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern is no regular expression"):
        EvalSection(reward="regex", pattern=pattern)


def test_a_pattern_that_takes_for_ever_is_ended_and_named() -> None:
    rows = (("a", "a"), ("a" * 60 + "!", "a"))
    with pytest.raises(ConfigError, match=r"pattern gave no answer in 0.5 s.*prompt 'p1'"):
        graded("regex", *rows, pattern="^(a|a)*$", timeout_s=0.5)


@pytest.mark.parametrize(
    ("name", "pattern"), [("exact_match", None), ("regex", "."), ("last_number", None)]
)
def test_a_missing_reference_is_named(name: str, pattern: str | None) -> None:
    with pytest.raises(ConfigError, match="row 1 of its unit, prompt 'p1': it has no 'reference'"):
        graded(name, ("1", "1"), ("1", None), pattern=pattern)


# --- of the user's own ---


def test_a_grader_gets_response_reference_and_metadata(write: Write, tmp_path: Path) -> None:
    write("def grade(*given):\n    return given == ('a\u2028\U0001f600', None, {'level': 3})\n")
    rows = (("a\u2028\U0001f600", None, '{"level": 3}'), ("a", None, '{"level": 3}'))
    assert graded("grader.py:grade", *rows, folder=tmp_path) == [1.0, 0.0]
    assert graded("grader:grade", *rows, folder=tmp_path) == [1.0, 0.0]


def test_many_long_responses_are_graded_in_order(write: Write, tmp_path: Path) -> None:
    write(GRADE + "    print('x' * 1000)\n    return len(response)\n")
    rows = [("y" * (20_000 + i), None) for i in range(400)]
    found = graded("grader.py:grade", *rows, folder=tmp_path)
    assert found == [20_000 + i for i in range(400)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("True", 1.0),
        ("3", 3.0),
        ("-0.25", -0.25),
        ("fractions.Fraction(1, 4)", 0.25),
        ("decimal.Decimal('0.5')", 0.5),
        ("numpy.bool_(True)", 1.0),
        ("numpy.float32(0.5)", 0.5),
        ("numpy.int8(2)", 2.0),
        ("numpy.array(0.5)", 0.5),
    ],
)
def test_a_grade_may_be_any_scalar(
    write: Write, tmp_path: Path, value: str, expected: float
) -> None:
    write("import decimal, fractions, numpy\n" + GRADE + f"    return {value}\n")
    assert graded("grader.py:grade", ("", None), folder=tmp_path) == [expected]


def test_a_grade_may_be_a_scalar_of_torch(write: Write, tmp_path: Path) -> None:
    write("import torch\n" + GRADE + "    return torch.tensor(0.5) > 0.2\n")
    assert graded("grader.py:grade", ("", None), folder=tmp_path) == [1.0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("None", "returned None of type NoneType, expected a number"),
        ("'1'", "returned '1' of type str, expected a number"),
        ("[1]", "expected a number"),
        ("1j", "expected a number"),
        ("float('nan')", "returned nan of type float, expected a finite number"),
        ("float('-inf')", "expected a finite number"),
        ("10 ** 400", "expected a finite number"),
        ("1e39", "expected a finite number"),
        ("__import__('decimal').Decimal('sNaN')", "expected a finite number"),
        ("(1 for _ in ())", "of type generator, expected a number"),
        ("'x' * 10**8", "of type str, expected a number"),
        ("'\\x1b[2J'", r"\x1b[2J"),
        ("1 / 0", "raised ZeroDivisionError: division by zero (grader.py:2)"),
        ("exit(0)", "raised SystemExit: 0"),
        ("__import__('os')._exit(7)", "ended its process with exit status 7"),
        ("__import__('os').kill(__import__('os').getpid(), 9)", "was killed by signal 9"),
        ("int('\\x1b]0;x')", r"\x1b]0;x"),
        ("[print('y' * 10**6), 1 / 0]", "It printed: …yyy"),
        ("grade(response, reference, metadata)", "raised RecursionError"),
        ("open(0).read() / 1", "raised TypeError"),
        ("__import__('os').close(3) or exit(1)", "the grader"),
    ],
)
def test_what_is_no_grade_is_refused_with_its_prompt(
    write: Write, tmp_path: Path, value: str, words: str
) -> None:
    write(GRADE + f"    return 1 if response == 'good' else {value}\n")
    with pytest.raises(ConfigError) as caught:
        graded("grader.py:grade", ("good", None), ("bad", None), folder=tmp_path)
    told = str(caught.value)
    assert words in told and "row 1 of its unit, prompt 'p1'" in told
    assert told.isprintable() and len(told) < 2000


@pytest.mark.parametrize(
    "body", ["time.sleep(600)", "[0 for _ in iter(int, 1)]", "print('z' * 99)"]
)
def test_a_grader_that_hangs_is_ended_with_all_that_it_started(
    write: Write, tmp_path: Path, body: str
) -> None:
    pids = tmp_path / "pids"
    write(
        "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"{GRADE}    while True:\n        {body}\n"
    )
    with pytest.raises(ConfigError, match="the grader gave no answer in 1 s"):
        graded("grader.py:grade", ("", None), folder=tmp_path, timeout_s=1.0)
    left = {int(pid) for pid in pids.read_text().split()}
    while left:  # the kernel takes a moment; the test's own time-out ends this
        states = {p.pid: p.info["status"] for p in psutil.process_iter(["status"])}
        left = {pid for pid in left if states.get(pid, "zombie") != "zombie"}


def test_a_grader_sees_no_credential_and_has_a_folder_of_its_own(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "TEACHER_KEY", "HF_TOKEN", "VLLM_API_KEY"):
        monkeypatch.setenv(name, "secret")
    write(
        "import os, sys\n" + GRADE + "    ours = {'', os.getcwd(), os.path.dirname(__file__)}\n"
        "    assert not ours & set(sys.path) and not os.listdir('.')\n"
        "    return sum(v == 'secret' for v in os.environ.values())\n"
    )
    assert graded("grader.py:grade", ("", None), folder=tmp_path) == [0.0]


OWNER = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests.rewards.test_graders import graded
graded("grader.py:grade", ("", None), folder=Path({folder!r}), timeout_s=600)
"""


def test_a_grader_ends_when_opd_is_killed(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    write(
        "import os, time\n" + GRADE + f"    open({str(path)!r}, 'x').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    code = OWNER.format(repository=str(REPOSITORY), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as owner:
        while not (path.exists() and path.read_text()):
            assert owner.poll() is None
            time.sleep(0.05)
        grader = psutil.Process(int(path.read_text()))
        os.kill(owner.pid, signal.SIGKILL)
    grader.wait(120)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module\n" + GRADE + "  return 1", "No module named 'no_such_module'"),
        ("exit(3)\n" + GRADE + "  return 1", "cannot be loaded: it raised SystemExit: 3"),
        ("import os; os._exit(4)\n" + GRADE + "  return 1", "process with exit status 4"),
        ("grade = 4", "grade is a int, not a function"),
        ("if 0:\n  grade = 4", "there is no grade in it"),
        ("grade = lambda response: 1", "cannot be called with (response, reference, metadata)"),
        ("from os import system as grade", "cannot be called with"),
    ],
)
def test_a_grader_that_cannot_be_loaded_is_refused_before_any_grading(
    write: Write, tmp_path: Path, source: str, words: str
) -> None:
    write(source)
    with pytest.raises(ConfigError) as caught:
        graded("grader.py:grade", folder=tmp_path)
    assert words in str(caught.value)
