"""Where a configuration stands: the folder that relative paths in it start from, or its URL."""

import posixpath
from dataclasses import dataclass

from pipeline.store.paths import at_home, located, resolved
from schemas.config.profiles.base import Base
from schemas.config.run import RunConfig
from schemas.errors import ConfigError
from schemas.foreign import shown


@dataclass(frozen=True)
class ConfigPlace:
    """The folder of a configuration."""

    base: str
    """An absolute path of this machine, or the URL of a folder in a store."""

    def resolve(self, location: str) -> str:
        """Return a path of the configuration as an absolute one, or as a URL; `~` is home.

        Raises:
            ConfigError: it is no place, or lies outside of the bucket of the configuration.
        """
        found = located(location)
        if found.scheme:
            return found.url
        path = at_home(found.path)
        scheme, separator, folder = self.base.rpartition("://")
        if not separator or path.is_absolute():
            return str(resolved(self.base / path if not separator else path))
        whole = posixpath.normpath(posixpath.join(folder, location))
        if whole.split("/")[0] != folder.split("/")[0]:
            raise ConfigError(f"{shown(location)} leads out of the bucket of {self.base}")
        return f"{scheme}://{whole}"


@dataclass(frozen=True)
class PlacedConfig:
    """A configuration, and where it stands."""

    config: RunConfig
    place: ConfigPlace
    base: Base | None = None
    """The profile that the TOML names."""
