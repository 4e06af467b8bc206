"""Where a run's TOML is read from: a file of this machine, or an object of a store."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from pipeline.store.place import ConfigPlace, PlacedConfig
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.errors import ConfigError


def read_config(location: str, overrides: Sequence[str] = ()) -> PlacedConfig:
    """Return the configuration at a path or URL; relative paths in it start from its folder.

    Args:
        location: a path, `file://…` or `s3://bucket/prefix/run.toml`.
        overrides: `section.key=value` items.

    Raises:
        ConfigError: nothing is there, it is not text, or its content is wrong.
        StorageError: the store cannot be read.
    """
    if "://" not in location:
        return load_config(Path(location), overrides)
    if location.startswith("file://"):
        return load_config(Path(location.removeprefix("file://")), overrides)
    if location.split("://")[0] not in ("s3", "memory"):
        raise ConfigError(
            f"cannot read the configuration {location}: give a path, file://… or s3://bucket/key"
        )
    folder, _, name = location.rpartition("/")
    data = Storage(folder).get(name)
    if data is None:
        raise ConfigError(f"no configuration at {location}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {location} is not text: {error}") from error
    config = parse_config(text, where=location, overrides=overrides)
    return PlacedConfig(config, ConfigPlace(folder))


def load_config(path: Path, overrides: Sequence[str] = ()) -> PlacedConfig:
    """Return the configuration of a TOML file; relative paths in it start from its folder.

    Raises:
        ConfigError: the file is missing or unreadable, or its content is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}{_nearest_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    config = parse_config(text, where=str(path), overrides=overrides)
    return PlacedConfig(config, ConfigPlace(str(path.resolve().parent)))


def _nearest_file(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.glob("*.toml")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {path.parent / close[0]}?" if close else ""
    return hint or "; the folder examples/ of opd's repository has some to start from"
