"""The corpus of bad inputs: cases as data, and how a folder becomes what a case says."""

import importlib
import json
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.forged import forged
from tests.support.repository import REPOSITORY
from tests.support.tiny import write_run

CORPUS = REPOSITORY / "tests" / "bad"
GONE = "(gone)"
"""In the place of a JSON value: the key is removed."""


@dataclass(frozen=True)
class BadCase:
    """A bad input, and what must become of it; `tests/bad/README.md` explains each field."""

    file: str
    name: str
    exit: int
    start: Literal["new", "finished"] = "new"
    set: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    toml: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    hexes: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    delete: tuple[str, ...] = ()
    recipe: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    command: str = "opd config validate -c run.toml"
    says: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Return what the test is called."""
        return f"{self.file}: {self.name}"


def all_cases() -> list[BadCase]:
    """Return every case of the corpus, in order of files."""
    return [case for path in sorted(CORPUS.glob("*.toml")) for case in _cases_of(path)]


def _cases_of(path: Path) -> Iterator[BadCase]:
    for fields in tomllib.loads(path.read_text(encoding="utf-8"))["case"]:
        for name in ("drop", "delete", "says", "unsaid", "leaves"):
            value = fields.get(name, ())
            fields[name] = (value,) if isinstance(value, str) else tuple(value)
        yield BadCase(file=path.stem, **fields)


def prepare(case: BadCase, folder: Path) -> None:
    """Make a copy of a tiny run what the case says; its files are the copy's own."""
    changes = {**case.set, **dict.fromkeys(case.drop)}
    write_run(folder, root="store", changes=changes)
    if case.toml is not None:
        (folder / "run.toml").write_text(case.toml, encoding="utf-8")
    for name, text in case.texts.items():
        _file(folder, name).write_bytes(text.encode("utf-8", "surrogatepass"))
    for name, digits in case.hexes.items():
        _file(folder, name).write_bytes(bytes.fromhex(digits))
    for name, fields in case.json.items():
        path = found(folder, name)
        value = json.loads(path.read_text())
        for key, new in fields.items():
            _change(value, key.split("."), new)
        path.write_bytes(forged(value))
    for name in case.delete:
        path = found(folder, name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if case.recipe is not None:
        module, _, function = case.recipe.partition(":")
        getattr(importlib.import_module(f"tests.bad.recipes.{module}"), function)(folder)


def found(folder: Path, pattern: str) -> Path:
    """Return the first file or folder that a pattern names."""
    return min(folder.glob(pattern))


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _change(value: Any, keys: list[str], new: Any) -> None:
    place: Any = keys[0] if isinstance(value, dict) else int(keys[0])
    if len(keys) > 1:
        _change(value[place], keys[1:], new)
    elif new == GONE:
        del value[place]
    else:
        value[place] = new


CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Characters that a terminal obeys or shows as nothing; line feeds and tabs are ours."""
