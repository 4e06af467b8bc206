"""Where a run's TOML is read from: a file of this machine, or an object of a store."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.store.storage import Storage
from schemas.config.file import load_config, parse_config
from schemas.config.run import RunConfig
from schemas.errors import ConfigError


def read_config(location: str, overrides: Sequence[str] = ()) -> RunConfig:
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
    return parse_config(text, where=location, base=folder, overrides=overrides)
