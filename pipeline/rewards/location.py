"""Where a configuration's grader is, and what identifies it; nothing of it is run here.

Promises: code comes from a file in the configuration's own folder, or from an installed package
that declares it as a grader; from nowhere else.
"""

import base64
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.runs.ownfile import Called, own_folder, own_function, own_path
from pipeline.store.disk.files import file_sha256
from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import (
    BESIDE,
    BUILT_IN,
    HOW_TO_NAME,
    EvalSection,
    GraderChoice,
    RewardSection,
    file_grader,
)
from schemas.errors import ConfigError

GROUP = "opd.graders"
"""Entry points of installed packages that are graders."""

PACKAGED = f"Install it as a package with an entry point of the group {GROUP}"


LIBRARIES = {
    "math": ("math-verify", "mathematics.py"),
    "json_schema": ("jsonschema", "jsonschemas.py"),
}
"""Grader → the package that it needs, and its file below `libraries`."""

ARGUMENTS = ("response", "reference", "metadata")


@dataclass(frozen=True)
class Grader:
    """A grader that is there."""

    choice: GraderChoice
    """As the configuration names it."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """What its process is told first; empty where it needs none."""
    identity: tuple[str, ...] = ()
    """What its grades depend on beside the configuration."""
    is_own: bool = False
    """Whether it is code of the user's."""
    of_library: bool = False
    """Whether it is a library's, which may end on what a model wrote."""

    @property
    def name(self) -> str:
        """Return its name alone."""
        return self.choice.name

    @property
    def compares(self) -> bool:
        """Return whether it compares with a reference, which a prompt must then have."""
        return self.name in BUILT_IN


def find_grader(section: EvalSection | RewardSection, place: ConfigPlace) -> Grader:
    """Return the grader of a configuration.

    Args:
        section: names it.
        place: where the configuration is.

    Raises:
        ConfigError: it is not there, or cannot be called as a grader is.
    """
    choice = section.choice
    if choice.pattern is not None:
        return Grader(choice, {"pattern": choice.pattern})
    named = file_grader(choice)
    if named is not None:
        return _in_file(choice, *named, place=place)
    if choice.name in LIBRARIES:
        return _of_library(choice)
    if choice.name in BUILT_IN:
        return Grader(choice)
    if choice.command is not None:
        return _command(choice, choice.command, place=place)
    return _installed(choice)


def _command(choice: GraderChoice, words: tuple[str, ...], *, place: ConfigPlace) -> Grader:
    """Return a program beside the configuration, its arguments, and what its files hold."""
    called = _called(choice)
    folder, found, digests = own_folder(called, place, PACKAGED), list[str](), list[str]()
    for word in words:
        if word.startswith(BESIDE):
            path = own_path(called, folder / word, folder)
            digests.append(_digest(choice, path))
        found.append(str(path) if word.startswith(BESIDE) else word)
    if not os.access(found[0], os.X_OK):
        raise ConfigError(f"{choice}: {found[0]} may not be executed: run `chmod +x` on it")
    return Grader(choice, {"command": found}, (*words, *digests), is_own=True)


def _digest(choice: GraderChoice, path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ConfigError(f"{choice}: {path} cannot be read: {error}") from error


def _of_library(choice: GraderChoice) -> Grader:
    """Return a grader that is made of a library; its version is part of what its grades are."""
    package, file = LIBRARIES[choice.name]
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{choice} needs the package {package}: pip install 'opd[graders]'"
        ) from None
    path = Path(__file__).with_name("libraries") / file
    source = base64.b64encode(path.read_bytes()).decode()
    start = {"name": "grade", "path": str(path), "source": source}
    return Grader(choice, start, (f"{package} {version}",), of_library=True)


def _in_file(choice: GraderChoice, file: str, function: str, *, place: ConfigPlace) -> Grader:
    found = own_function(_called(choice), file, function, place=place, instead=PACKAGED)
    start = {
        "name": function,
        "path": str(found.path),
        "source": base64.b64encode(found.source).decode(),
    }
    return Grader(choice, start, (found.sha256,), is_own=True)


def _called(choice: GraderChoice) -> Called:
    return Called(str(choice), "grader", ARGUMENTS, HOW_TO_NAME)


def _installed(choice: GraderChoice) -> Grader:
    name = choice.name
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    point = points.get(name)
    if point is None:
        close = difflib.get_close_matches(name, (*points, *BUILT_IN), n=1)
        hint = f"did you mean {close[0]!r}? Else " if close else ""
        known = f"installed are {', '.join(sorted(points))}" if points else "none is installed"
        raise ConfigError(
            f"{choice} is no entry point of the group {GROUP}, of which {known}; "
            f"{hint}{HOW_TO_NAME}"
        )
    package = point.dist
    identity = (package.name, package.version) if package else (point.value,)
    return Grader(choice, {"name": name, "value": point.value}, identity, is_own=True)
