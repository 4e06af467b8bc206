"""A function of the user's own: where its file is, and what identifies it; nothing of it is run.

Promises: code comes from a file in the folder of the configuration that names it; no stored record
and no store ever names one.
"""

import ast
import hashlib
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.store.place import ConfigPlace
from schemas.config.loss import HOW_TO_NAME, LossConfig
from schemas.errors import ConfigError

MOST_BYTES = 1 << 20
"""Size of a function's file."""

_Found = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Called:
    """What a function is to the configuration that names it."""

    choice: str
    """The key and its value, as messages show them."""
    role: str
    """Such as `grader`."""
    arguments: Sequence[str]
    """Names of what it is called with."""
    how: str
    """How one is named, for messages."""

    def __str__(self) -> str:
        """Return the key and its value."""
        return self.choice


@dataclass(frozen=True)
class OwnFunction:
    """A function of a file, as the bytes that were read."""

    choice: str
    name: str
    path: Path
    source: bytes

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes."""
        return hashlib.sha256(self.source).hexdigest()


def own_function(
    called: Called, file: str, function: str, *, place: ConfigPlace, instead: str = ""
) -> OwnFunction:
    """Return a function of a file beside the configuration.

    Args:
        called: what it is for.
        file: name of the file.
        function: its name in the file.
        place: where the configuration is.
        instead: what else can be done where that is a store.

    Raises:
        ConfigError: it is not there, or cannot be called so.
    """
    folder = own_folder(called, place, instead)
    path = folder / file
    source = _source(called, path, folder)
    _check_function(called, path, source, function)
    return OwnFunction(str(called), function, path, source)


def own_loss(loss: LossConfig, place: ConfigPlace) -> OwnFunction | None:
    """Return the file of a loss of the user's own; None for one of opd's.

    Raises:
        ConfigError: it is not there, or cannot be called as a loss is.
    """
    if loss.own is None:
        return None
    called = Called(f"loss.kind = {loss.kind!r}", "loss", ("log_q", "log_p"), HOW_TO_NAME)
    return own_function(called, *loss.own, place=place)


def own_folder(called: Called, place: ConfigPlace, instead: str = "") -> Path:
    """Return the folder of the configuration, from which alone code is taken.

    Raises:
        ConfigError: it is in a store.
    """
    if "://" in place.base:
        raise ConfigError(
            f"{called} names a file beside the configuration, and that is at "
            f"{place.base}: code is not taken from a store. "
            f"{f'{instead}, or run' if instead else 'Run'} from a folder of this machine"
        )
    return Path(place.base)


def own_path(called: Called, path: Path, folder: Path) -> Path:
    """Return where a file really is, which must lie in a folder.

    Raises:
        ConfigError: it is not there, is elsewhere, or is no plain file.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{called}: {path} is a link to {real}, outside the folder of the "
                "configuration; put the file itself there"
            )
        if not stat.S_ISREG(real.stat().st_mode):
            raise _too_much(called, path)
        return real
    except FileNotFoundError:
        raise ConfigError(f"{called}: there is no {path}; {called.how}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{called}: {path} cannot be read: {error}") from error


def _source(called: Called, path: Path, folder: Path) -> bytes:
    """Return the bytes of a function's file."""
    real = own_path(called, path, folder)
    try:
        if real.stat().st_size > MOST_BYTES:
            raise _too_much(called, path)
        return real.read_bytes()
    except OSError as error:
        raise ConfigError(f"{called}: {path} cannot be read: {error}") from error


def _too_much(called: Called, path: Path) -> ConfigError:
    return ConfigError(
        f"{called}: {path} is no file of at most {MOST_BYTES} bytes, as a {called.role} has to be"
    )


def _check_function(called: Called, path: Path, source: bytes, function: str) -> None:
    """Make sure, without running it, that a file has a function with the right arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{called}: {path} is no Python: {error}") from error
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [n for n in tree.body if isinstance(n, kinds) and n.name == function]
    words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | _imported(tree)
    if not found and function not in words and "*" not in words:
        known = sorted(n.name for n in tree.body if isinstance(n, ast.FunctionDef))
        raise ConfigError(
            f"{called}: {path} has no function {function!r}; it has {', '.join(known) or 'none'}"
        )
    if found and not found[-1].decorator_list:
        _check_arguments(called, path, found[-1])


def _imported(tree: ast.Module) -> set[str]:
    """Return the names that imports and further definitions give to a module."""
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    given = {alias.asname or alias.name for one in imports for alias in one.names}
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return given | {n.name for n in ast.walk(tree) if isinstance(n, kinds)}


def _check_arguments(called: Called, path: Path, found: _Found) -> None:
    given, count = found.args, len(called.arguments)
    most = len(given.posonlyargs) + len(given.args)
    least = most - len(given.defaults)
    keywords = any(default is None for default in given.kw_defaults)
    fits = least <= count and (most >= count or given.vararg is not None) and not keywords
    if isinstance(found, ast.AsyncFunctionDef) or not fits:
        raise ConfigError(
            f"{called}: a {called.role} is called as {found.name}({', '.join(called.arguments)}), "
            f"but line {found.lineno} of {path} defines {ast.unparse(found.args)!r} as its "
            "arguments" + (", and is async" if isinstance(found, ast.AsyncFunctionDef) else "")
        )
