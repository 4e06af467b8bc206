"""What a root's URL means: which kind of store, and how its object names begin."""

from pathlib import Path

from pipeline.store.backend import Backend
from pipeline.store.disk.local import LocalBackend
from pipeline.store.objects import ObjectBackend, s3_options
from pipeline.store.paths import local_path, located
from schemas.config.storage import StorageSection
from schemas.errors import ConfigError
from schemas.foreign import shown


def open_backend(root: str, settings: StorageSection) -> tuple[Backend, str]:
    """Return the backend of a root's scheme, and the prefix of its object names.

    Raises:
        ConfigError: it names no place that can be a store.
    """
    place = located(root)
    if place.is_local:
        folder = local_path(place)
        if folder == Path(folder.anchor):
            raise ConfigError(f"{shown(root)} is the whole disk; name a folder for the store")
        return LocalBackend(), str(folder)
    name = f"{place.host}{place.path}".rstrip("/")
    if place.scheme == "memory":
        return ObjectBackend("memory", {}), f"/{name}"
    return ObjectBackend("s3", s3_options(settings)), name
