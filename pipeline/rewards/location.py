"""Where a configuration's grader is, and what identifies it; nothing of it is run here.

Promises: code comes from a file in the configuration's own folder, or from an installed package
that declares it as a grader; from nowhere else.
"""

import ast
import base64
import difflib
import hashlib
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.store.place import ConfigPlace
from schemas.config.evaluation import (
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

MOST_BYTES = 1 << 20
"""Size of a grader's file."""

ARGUMENTS = "(response, reference, metadata)"


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
    if choice.name in ("exact_match", "last_number"):
        return Grader(choice)
    return _installed(choice)


def _in_file(choice: GraderChoice, file: str, function: str, *, place: ConfigPlace) -> Grader:
    if "://" in place.base:
        raise ConfigError(
            f"{choice} names a file beside the configuration, and that is at "
            f"{place.base}: code is not taken from a store. Install it as a package with an entry "
            f"point of the group {GROUP}, or run from a folder of this machine"
        )
    path = Path(place.base) / file
    source = _source(choice, path, Path(place.base))
    _check_function(choice, path, source, function)
    start = {
        "name": function,
        "path": str(path),
        "source": base64.b64encode(source).decode(),
    }
    return Grader(choice, start, (hashlib.sha256(source).hexdigest(),), is_own=True)


def _source(choice: GraderChoice, path: Path, folder: Path) -> bytes:
    """Return the bytes of a grader's file, which must lie in a folder."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{choice}: {path} is a link to {real}, outside the folder of the "
                "configuration; put the file itself there"
            )
        found = real.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise ConfigError(
                f"{choice}: {path} is no file of at most {MOST_BYTES} bytes, as a grader has to be"
            )
        return real.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{choice}: there is no {path}; {HOW_TO_NAME}") from None
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{choice}: {path} cannot be read: {error}") from error


def _check_function(choice: GraderChoice, path: Path, source: bytes, function: str) -> None:
    """Make sure, without running it, that a file has a function with the right arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{choice}: {path} is no Python: {error}") from error
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [n for n in tree.body if isinstance(n, kinds) and n.name == function]
    words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | _imported(tree)
    if not found and function not in words and "*" not in words:
        known = sorted(n.name for n in tree.body if isinstance(n, ast.FunctionDef))
        raise ConfigError(
            f"{choice}: {path} has no function {function!r}; it has {', '.join(known) or 'none'}"
        )
    if found and not found[-1].decorator_list:
        _check_arguments(choice, path, found[-1])


def _imported(tree: ast.Module) -> set[str]:
    """Return the names that imports and further definitions give to a module."""
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    given = {alias.asname or alias.name for one in imports for alias in one.names}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return given | {n.name for n in ast.walk(tree) if isinstance(n, kinds)}


def _check_arguments(
    choice: GraderChoice, path: Path, found: ast.FunctionDef | ast.AsyncFunctionDef
) -> None:
    given = found.args
    most = len(given.posonlyargs) + len(given.args)
    least = most - len(given.defaults)
    keywords = any(default is None for default in given.kw_defaults)
    fits = least <= 3 and (most >= 3 or given.vararg is not None) and not keywords
    if isinstance(found, ast.AsyncFunctionDef) or not fits:
        raise ConfigError(
            f"{choice}: a grader is called as {found.name}{ARGUMENTS}, but line "
            f"{found.lineno} of {path} defines {ast.unparse(found.args)!r} as its arguments"
            + (", and is async" if isinstance(found, ast.AsyncFunctionDef) else "")
        )


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
