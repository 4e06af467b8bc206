"""The shape of the code: small files, small folders, no circles, and little behind each reader."""

from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import grimp
import pytest

from tests.support.repository import REPOSITORY

PACKAGES = ("pipeline", "cli", "schemas")
MAX_LINES, MAX_MODULES, MAX_MAIN_IDEA = 300, 14, 900
BEHIND = {
    "pipeline.learner.data": 36,
    "pipeline.upkeep.verify": 48,
    "pipeline.checkpoints.probe": 12,
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
    for path in modules(*PACKAGES):
        if path.name == "__init__.py":
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) == 1 and lines[0].startswith('"""'), path


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
