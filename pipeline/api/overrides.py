"""Values of Python as the `--set` items that a run is opened with; functions by their names.

Promises: a function is taken only as the bytes of its file, which are part of what a run is: one
that no file has, or whose file is another by now, is refused.
"""

import json
import types
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path

from schemas.config.tree import WHOLE
from schemas.errors import ConfigError
from schemas.foreign import shown

HOW = "Write it into a file of its own beside the TOML, and import it from there"


def items_of(overrides: Mapping[str, object], folder: Path | None) -> list[str]:
    """Return `section.key=value` items.

    Args:
        overrides: dotted keys and their values: what TOML can hold, or a function of a file beside
            the TOML for a key that names one.
        folder: the folder of the TOML; None where it is in a store.

    Raises:
        ConfigError: TOML cannot hold a value, or a function cannot be named.
    """
    if not isinstance(overrides, Mapping):
        found = type(overrides).__name__
        raise ConfigError(f"overrides are a dict such as {{'loss.kind': 'jsd'}}, found a {found}")
    for key in overrides:
        if not isinstance(key, str) or "=" in key:
            raise ConfigError(f"an override's key is such as 'loss.kind', found {shown(key)}")
    try:
        return [f"{key}={_text(key, value, folder)}" for key, value in overrides.items()]
    except RecursionError:
        raise ConfigError("an override is a list or a dict that holds itself") from None


def _text(key: str, value: object, folder: Path | None) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, (str, Path)):
        return _quoted(str(value))
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Integral) and int(value) in WHOLE:
        return str(int(value))
    if isinstance(value, Real) and not isinstance(value, Integral):
        return repr(float(value))  # TOML writes `inf` and `nan` as Python does
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(key, item, folder) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_quoted(str(k))} = {_text(key, v, folder)}" for k, v in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if callable(value):
        return _quoted(_name(key, value, folder))
    raise ConfigError(
        f"{key}: a configuration cannot hold this {type(value).__name__}: give a text, a number of "
        "64 bits, true or false, a list or a dict of them, or a function of a file beside the "
        "TOML. To have a key's default, leave it out"
    )


def _quoted(text: str) -> str:
    """Return a text as TOML writes it, which escapes one character more than JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _name(key: str, function: Callable[..., object], folder: Path | None) -> str:
    """Return `file.py:function`, by which a TOML names a function of a file beside it."""
    told = f"{key}: the function {getattr(function, '__qualname__', type(function).__name__)}"
    if not isinstance(function, types.FunctionType):
        raise ConfigError(f"{told} is none that `def` has made, so no file can be named. {HOW}")
    path = Path(function.__code__.co_filename)
    if function.__module__ == "__main__" or not path.is_file():
        raise ConfigError(
            f"{told} is of a notebook or of the program that runs, and its processes would have to "
            f"run that again to have it; what a run is made of is the bytes of a file. {HOW}"
        )
    if folder is None or path.resolve().parent != folder.resolve():
        where = "a store, from which no code is taken" if folder is None else f"{folder}"
        raise ConfigError(f"{told} is in {path.resolve()}, but the TOML is in {where}. {HOW}")
    if function.__qualname__ != function.__name__ or function.__closure__:
        raise ConfigError(
            f"{told} was made inside of another one, so {path} has no such name. {HOW}"
        )
    _check_same(told, function, path)
    return f"{path.name}:{function.__name__}"


def _check_same(told: str, function: types.FunctionType, path: Path) -> None:
    """Make sure that a file still has the function that this process has."""
    try:
        module = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{told}: {path} cannot be read as Python: {error}") from error
    if function.__code__ not in _codes(module):
        raise ConfigError(
            f"{told} is not what {path} says now: the file was changed after it was imported. "
            "Import it again (importlib.reload), so that what you tried is what runs"
        )


def _codes(module: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of each function of a module."""
    return (value for value in module.co_consts if isinstance(value, types.CodeType))
