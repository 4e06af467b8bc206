"""Where a run's TOML is read from: a file of this machine, or an object of a store."""

import difflib
import stat
from collections.abc import Sequence
from pathlib import Path

from pipeline.store.paths import located
from pipeline.store.place import ConfigPlace, PlacedConfig
from pipeline.store.storage import Storage
from schemas.config.file import parse_based
from schemas.config.tree import MAX_BYTES, decoded, parse_tree
from schemas.errors import ConfigError
from schemas.foreign import shown

MOST_LOOKED = 100
"""Files of a folder that are looked at to find the one that was meant."""


def read_config(location: str, overrides: Sequence[str] = ()) -> PlacedConfig:
    """Return the configuration at a path or URL; relative paths in it start from its folder.

    Args:
        location: a path, `file://…` or `s3://bucket/prefix/run.toml`.
        overrides: `section.key=value` items.

    Raises:
        ConfigError: nothing is there, it is not text, or its content is wrong.
        StorageError: the store cannot be read.
    """
    place = located(location)
    if place.is_local:
        path = Path(place.path)
        return load_config(path, overrides)
    folder, _, name = place.url.rpartition("/")
    if not name or folder.endswith("/"):
        raise ConfigError(f"{shown(location)} names no object; write s3://bucket/folder/run.toml")
    data = Storage(folder).get(name)
    if data is None:
        raise ConfigError(f"no configuration at {location}")
    text = decoded(data, where=location)
    found = parse_based(text, where=location, overrides=overrides)
    return PlacedConfig(found.config, ConfigPlace(folder), found.base)


def load_config(path: Path, overrides: Sequence[str] = ()) -> PlacedConfig:
    """Return the configuration of a TOML file; relative paths in it start from its folder.

    Raises:
        ConfigError: the file is missing or unreadable, or its content is wrong.
    """
    try:
        data = _read(path)
        folder = str(path.resolve().parent)
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}{_nearest_file(path)}") from error
    except (OSError, RuntimeError) as error:  # the latter of links that lead in a circle
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    found = parse_based(decoded(data, where=str(path)), where=f"{path}", overrides=overrides)
    return PlacedConfig(found.config, ConfigPlace(folder), found.base)


def _read(path: Path) -> bytes:
    """Return the bytes of a file, up to one more than a configuration may have; waits for none."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise ConfigError(f"cannot read the configuration {path}: it is {kind}, not a file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _nearest_file(path: Path) -> str:
    """Return a hint at the run of the same folder that may have been meant, or at how to get one.

    A TOML of something else, such as pyproject.toml, is none.
    """
    try:
        names = [
            one.name
            for one in sorted(path.parent.glob("*.toml"))[:MOST_LOOKED]
            if _is_of_a_run(one)
        ]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    if close:
        return f"; did you mean {path.parent / close[0]}?"
    return "; `opd init` writes one, and examples/ of opd's repository has some"


def _is_of_a_run(path: Path) -> bool:
    """Return whether a file looks like a run: it has a student, or a base to start from."""
    try:
        found = parse_tree(decoded(_read(path), where=path.name), where=path.name)
    except (OSError, ConfigError):
        return False
    return isinstance(found.get("student"), dict) or isinstance(found.get("base"), str)
