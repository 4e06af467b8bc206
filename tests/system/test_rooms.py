"""The shape of the code and its tests: small files and folders, no circles, tests in rooms."""

from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import grimp
import pytest

from tests.conftest import LONG
from tests.support.repository import REPOSITORY

PACKAGES = ("pipeline", "cli", "schemas")
MAX_LINES, MAX_TEST_LINES, MAX_MODULES, MAX_MAIN_IDEA = 300, 400, 14, 900
TESTS = REPOSITORY / "tests"
OF_NO_ROOM = {"bad", "gpu", "support", "system", "zoo"}
"""Folders of bad inputs, of helpers, of tests that need the whole system, of many models."""

BEHIND = {
    "pipeline.learner.feed.data": 68,
    "pipeline.upkeep.verify": 50,
    "pipeline.checkpoints.probe": 14,
}
"""Module → how many of ours it may need, those that functions import included."""

MAIN_IDEA = (
    "schemas/tables.py",
    "schemas/records/shards.py",
    "pipeline/store/commit.py",
    "pipeline/runs/units.py",
    "pipeline/stages/score.py",
    "pipeline/objectives/losses.py",
)


@cache
def imports() -> grimp.ImportGraph:
    """Return who imports whom, function bodies included."""
    return grimp.build_graph(*PACKAGES)


def modules(*packages: str) -> list[Path]:
    return sorted(path for name in packages for path in (REPOSITORY / name).rglob("*.py"))


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("package", (*PACKAGES, "airflow_dags", "benchmarks"))
def test_a_folder_has_few_modules(package: str) -> None:
    folders = {path.parent for path in modules(package)}
    sizes = {f: sum(p.stem != "__init__" for p in f.glob("*.py")) for f in folders}
    assert {str(f): size for f, size in sizes.items() if size > MAX_MODULES} == {}


def test_a_room_has_a_docstring_and_nothing_else() -> None:
    # `import pipeline as opd` is the Python API, whose names are found when they are used
    door = REPOSITORY / "pipeline" / "__init__.py"
    for path in modules(*PACKAGES):
        if path.name == "__init__.py" and path != door:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) == 1 and lines[0].startswith('"""'), path


def rooms_of(packages: tuple[str, ...]) -> set[Path]:
    """Return where tests of some packages stand: pipeline's rooms are told by their own name."""
    found = {path.parent.relative_to(REPOSITORY) for path in modules(*packages)}
    return {room.relative_to("pipeline") if room.parts[0] == "pipeline" else room for room in found}


def test_a_test_stands_in_the_room_of_what_it_tests() -> None:
    rooms = rooms_of(PACKAGES) - {Path()} | {Path("airflow")}
    places = {path.parent.relative_to(TESTS) for path in TESTS.rglob("*.py")} - {Path()}
    assert {str(p) for p in places - rooms if p.parts[0] not in OF_NO_ROOM} == set()


def test_a_file_of_tests_is_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {str(path): n for path, n in lines.items() if n > MAX_TEST_LINES} == {}


def test_the_tests_that_come_first_are_there() -> None:
    assert [name for name in LONG if not (TESTS / name).is_file()] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = imports()
    needs = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", BEHIND)
def test_little_stands_behind_a_reader(name: str) -> None:
    behind = imports().find_upstream_modules(name)
    assert 0 < len(behind) <= BEHIND[name], sorted(behind)


def test_the_main_idea_is_read_in_the_order_that_the_readme_gives() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    places = [text.index(f"`{name}`") for name in MAIN_IDEA]
    assert places == sorted(places)
    lines = [(REPOSITORY / name).read_text(encoding="utf-8").count("\n") for name in MAIN_IDEA]
    assert sum(lines) <= MAX_MAIN_IDEA


def test_vllm_finds_what_ends_its_processes() -> None:
    found = [e for e in metadata.entry_points(group="vllm.general_plugins") if e.name == "opd"]
    assert [entry.value for entry in found] == [
        "pipeline.engines.processes:end_engine_with_parent"
    ], "the installed opd is out of date: run make, or pip install -e ."
    assert found[0].load().__name__ == "end_engine_with_parent"
