"""Where a configuration stands: the folder that relative paths in it start from, or its URL."""

import posixpath
from dataclasses import dataclass
from pathlib import Path

from schemas.config.run import RunConfig


@dataclass(frozen=True)
class ConfigPlace:
    """The folder of a configuration."""

    base: str
    """An absolute path of this machine, or the URL of a folder in a store."""

    def resolve(self, location: str) -> str:
        """Return a path of the configuration as an absolute one, or as a URL; `~` is home."""
        if "://" in location:
            return location
        path = Path(location).expanduser()
        scheme, separator, folder = self.base.rpartition("://")
        if separator and not path.is_absolute():
            return f"{scheme}://{posixpath.normpath(posixpath.join(folder, location))}"
        return str((self.base / path).resolve())


@dataclass(frozen=True)
class PlacedConfig:
    """A configuration, and where it stands."""

    config: RunConfig
    place: ConfigPlace
