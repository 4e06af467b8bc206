"""The keys of a root: spelled in one module, drawn in docs/storage.md, and no others in a run."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline.checkpoints.probe import PREFIX, SUFFIX
from schemas import keys
from tests.support.repository import REPOSITORY

KEYS = REPOSITORY / "schemas" / "keys.py"
MODULES = sorted(
    path
    for folder in ("pipeline", "cli", "schemas")
    for path in (REPOSITORY / folder).rglob("*.py")
    if path != KEYS
)

OF_OTHERS = {
    "pipeline/outcome/dataset.py": "files of an exported folder",
    "pipeline/trackers/mlflow.py": "artifacts of a tracker",
    "pipeline/trackers/parts.py": "figures as trackers group them",
}
"""Module → what it names that is no object of a root, though it looks like one."""

ENDINGS = (".json", ".parquet", ".safetensors")


# --- the drawing ---


def drawn() -> set[str]:
    """Return the keys that docs/storage.md draws, without the root."""
    text = (REPOSITORY / "docs" / "storage.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```text\n<root>/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found, above = set[str](), list[str]()
    for line in tree.splitlines():
        name = re.split(r"\s{2,}", line.strip())[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        above = [*above[:depth], name]
        if not name.endswith("/"):
            found.update(expanded("".join(above)))
    return found


def expanded(text: str) -> Iterator[str]:
    """Yield what braces with alternatives stand for."""
    parts = re.split(r"\{([^}]*)\}", text)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    for chosen in product(*choices):
        yield "".join(chosen)


def pattern_of(key: str) -> re.Pattern[str]:
    """Return what the keys look like that a drawn one stands for."""
    pieces = re.split(r"(<\w+>|…|\d+)", key)
    return re.compile(
        "".join(
            re.escape(piece)
            if index % 2 == 0
            else rf"\d{{{len(piece)}}}"
            if piece.isdigit()
            else "[^/]+"
            for index, piece in enumerate(pieces)
        )
    )


CALL = keys.timed_call("<stage>", 0.0).replace("-0ms", "-<milliseconds>ms")


def spelled_by_keys() -> set[str]:
    """Return the keys that the functions of schemas/keys.py make of the drawing's placeholders."""
    run, scorer, teacher, unit = "<run>", "<scorer>", keys.score_stage("<teacher>"), "u00000"
    found = {
        keys.run_key(run),
        *(keys.manifest_key(keys.prompts_folder(run, split)) for split in ("train", "eval")),
        keys.teacher_key(run, "<name>"),
        keys.admission_key(run, keys.STUDENT, "<mark>"),
        keys.admission_key(run, keys.teacher_label("<name>"), "<mark>"),
        keys.admission_key(run, keys.ENGINE, "<mark>"),
        *(f"{keys.checkpoint_folder(run, index)}/<file>" for index in (0, None)),
        keys.manifest_key(keys.checkpoint_folder(run, 0)),
        f"{keys.checkpoint_folder(run, 1)}/{PREFIX}…{SUFFIX}",
        *(keys.state_key(run, "<sha256>", ending) for ending in ("json", "safetensors")),
        keys.shard_key(keys.metrics_folder(run), "<sha256>"),
        keys.time_key(run, 0, call=CALL, random="<random>"),
        *(
            keys.shard_key(folder, "<sha256>")
            for folder in (keys.PROMPTS, keys.ROLLOUTS, keys.REWARDS)
        ),
        *(keys.name_key("<name>"), keys.pin_key(scorer), keys.probe_key("<random>")),
        keys.sweep_key(),
    }
    answers = keys.sample_stage("<teacher>"), keys.grade_stage("<teacher>")
    stages = (keys.sample_stage(None), teacher, keys.grade_stage(None), "eval", *answers)
    folders = [keys.stage_folder(run, 0, stage) for stage in stages]
    found |= {*(keys.plan_key(folders[at]) for at in (0, 4)), keys.drift_key(folders[1])}
    labels = (keys.STUDENT, keys.teacher_label("<name>"))
    for folder in (*folders, *(keys.baseline_folder(run, label) for label in labels)):
        found |= {keys.commit_key(folder, unit), keys.lease_key(folder, unit)}
        found.add(keys.manifest_key(folder))
    folder = keys.stage_folder(run, 0, "train")
    found |= {keys.commit_key(folder, "step-000010-…"), keys.manifest_key(folder)}
    found |= {
        keys.lease_key(folder, "learner"),
        keys.failure_key(keys.stage_folder(run, 0, "<stage>")),
    }
    folder, index = keys.scorer_folder(scorer), keys.index_folder(scorer)
    found |= {keys.commit_key(folder, "<digest>"), keys.lease_key(folder, "<digest>")}
    found.add(keys.lease_key(folder, "hold-<random>"))
    found |= {keys.scorer_key(scorer), keys.renumbering_key(scorer)}
    found |= {f"{keys.renumberings_folder(scorer)}/<sha256>"}
    found |= {keys.shard_key(keys.data_folder(scorer), "<sha256>")}
    found |= {f"{keys.index_part(index, 'new')}/<digest>", keys.index_state_key(index, 1)}
    found |= {f"{keys.index_part(index, part)}/<random>" for part in ("parts", "tables", "damaged")}
    return found


def test_the_drawing_shows_what_the_functions_make_and_no_other_key() -> None:
    assert drawn() == spelled_by_keys()


def test_every_function_of_the_keys_is_drawn() -> None:
    called = set[str]()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename == keys.__file__:
            called.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        spelled_by_keys()
    finally:
        sys.setprofile(None)
    functions = {name for name, _ in inspect.getmembers(keys, inspect.isfunction)}
    assert functions - called == {
        *("owner", "parent", "scorer_of_key", "stem", "time_of", "timed_call", "unit_name")
    }


SELDOM = re.compile(
    r"/leases/|/index/(damaged|parts|states|tables)/|/renumbering|^(gc|pins|probe|rewards|scorers)/"
    r"|/(grade|samples)/|/failed\.json$|/drift\.json$|/checkpoints/base/|/admission/engine/"
)
"""Keys that a plain run that went undisturbed does without."""


@pytest.mark.slow
def test_a_finished_run_leaves_no_key_that_is_not_drawn(finished_run: Path) -> None:
    root = finished_run / "store"
    patterns = {key: pattern_of(key) for key in drawn()}
    found = set[str]()
    for path in root.rglob("*"):
        key = path.relative_to(root).as_posix()
        if path.is_file():
            matching = {name for name, pattern in patterns.items() if pattern.fullmatch(key)}
            assert matching, f"{key} is not drawn in docs/storage.md"
            found |= matching
    missing = sorted(key for key in patterns if key not in found and not SELDOM.search(key))
    assert not missing, f"no such keys: {missing}"


# --- one module spells them ---

FILES = {"run", "manifest", "plan", "drift", "scorer", "renumbering"}
FILE = re.compile(rf"({'|'.join(sorted(FILES))})\.json")
FOLDERS = {
    *("runs", "prompts", "teachers", "checkpoints", "rounds", "score", "train", "eval", "commits"),
    *("leases", "baseline", "teacher", "state", "metrics", "times", "rollouts", "rollout", "cache"),
    *("renumbering", "data", "index", "new", "states", "parts", "tables", "scorers", "pins"),
    *("probe", "student"),
}
VERBS = {
    *("put", "exists", "create", "delete", "version", "names", "folders", "url", "upload"),
    *("replace", "content_shard", "find_record", "read_record", "create_record"),
}
"""Functions and methods that take a key; `get` is a dictionary's more often."""
HOLE = "\0"
"""What stands for a value inside an f-string."""


def texts_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string of a module that is no docstring, with holes in it."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    for text in joined:
        parts = [str(p.value) if isinstance(p, ast.Constant) else HOLE for p in text.values]
        yield text.lineno, "".join(parts)
        skipped |= {id(part) for part in text.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            yield node.lineno, str(node.value)


def is_key(text: str) -> bool:
    """Return whether a text, or a word of one, is a key of a root or a part of one."""
    words = text.split()
    for word in words:
        parts = word.strip("`'\".,;:()").split("/")
        is_whole = len(words) == 1
        if any(FILE.fullmatch(part) for part in parts) and (is_whole or len(parts) > 1):
            return True
        if len(parts) > 1 and (is_whole or HOLE in word) and FOLDERS.intersection(parts):
            return True
        if HOLE in word and "/" in word and word.endswith(ENDINGS):
            return True
    return False


def calls_with_keys(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each name of a folder that is handed to a verb of the store."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = getattr(called, "attr", getattr(called, "id", ""))
            for given in node.args if name in VERBS else ():
                if isinstance(given, ast.Constant) and given.value in FOLDERS:
                    yield node.lineno, str(given.value)


def keys_in(source: str) -> list[tuple[int, str]]:
    """Return line and text of each key that a module spells."""
    tree = ast.parse(source)
    return [
        *((line, text) for line, text in texts_of(tree) if is_key(text)),
        *calls_with_keys(tree),
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_no_other_module_spells_a_key(path: Path) -> None:
    found = keys_in(path.read_text(encoding="utf-8"))
    is_of_others = str(path.relative_to(REPOSITORY)) in OF_OTHERS
    assert bool(found) == is_of_others, f"use a function of schemas/keys.py: {found}"


@pytest.mark.parametrize(
    "line",
    [
        'f"{x}/manifest.json"',
        'folder + "/manifest.json"',
        'key = "scorer.json"',
        'f"{scorer_folder(key)}/commits"',
        'f"runs/{run}"',
        'f"score/{teacher}"',
        'f"{folder}/{digest}.parquet"',
        'folder = "index/new"',
        'key.startswith("cache/")',
        'print(f"{url}/scorer.json is another")',
        'print(f"look at {url}/leases for who works")',
        'storage.names("pins")',
        'content_shard("rollouts", data)',
    ],
)
def test_a_key_that_is_spelled_is_found(line: str) -> None:
    assert keys_in(line)


@pytest.mark.parametrize(
    "line",
    [
        'f"{folder}/{name}"',
        'path = "/v1/models"',
        'folder / "config.json"',
        'print("no scorer.json: the data and the index are there")',
        'print(f"{index + 1}/{total} states of the train stage")',
        'text = "the prompts/records that were read"',
        'def f():\n    """Read `<scorer>/index/new`."""',
        'settings.get("teacher/student ratio") or found.get("teacher")',
        'stage = "rollout"',
    ],
)
def test_what_is_no_key_is_let_alone(line: str) -> None:
    assert not keys_in(line)
