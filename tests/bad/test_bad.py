"""Every case of the corpus of bad inputs ends with the exit code and the words that it names."""

import shlex
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.badcases import CONTROL, GONE, BadCase, all_cases, prepare
from tests.support.runs import Cli
from tests.support.tiny import write_run

CASES = all_cases()
USER_MUST_EDIT = 2


@pytest.fixture(scope="session")
def new_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny run of which nothing was sampled; copy it to change it."""
    folder = tmp_path_factory.mktemp("new")
    write_run(folder, root="store")
    return folder


@pytest.mark.timeout(60, func_only=True)  # what all cases share is made in its own time
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_bad_input_ends_in_words(
    case: BadCase,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
) -> None:
    original: Path = request.getfixturevalue(f"{case.start}_run")
    folder = tmp_path / "bad"
    shutil.copytree(original, folder)
    prepare(case, folder)
    monkeypatch.chdir(folder)
    set_environment(case, folder, monkeypatch)
    before = stored(folder)
    program, *arguments = shlex.split(case.command)
    assert program == "opd"
    outcome = cli(*arguments)
    told = outcome.stdout + outcome.stderr
    assert "Traceback" not in told
    assert outcome.code == case.exit, told
    assert [phrase for phrase in case.says if phrase not in told] == [], told
    assert [phrase for phrase in case.unsaid if phrase in told] == [], told
    assert CONTROL.findall(told) == []
    if case.exit == USER_MUST_EDIT and case.start == "new":
        new = stored(folder) - before
        assert before <= stored(folder)
        assert [key for key in new if not any(fnmatch(key, leave) for leave in case.leaves)] == []


def test_each_case_has_a_name_of_its_own() -> None:
    names = [case.id for case in CASES]
    assert len(set(names)) == len(names)


def set_environment(case: BadCase, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the variables of a case."""
    for name, value in case.env.items():
        if value == GONE:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.replace("{folder}", str(folder)))
    monkeypatch.setattr(tempfile, "tempdir", None)  # or TMPDIR would not be looked at again


def stored(folder: Path) -> set[str]:
    """Return the names of everything in a root, to see whether anything was stored."""
    root = folder / "store"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
