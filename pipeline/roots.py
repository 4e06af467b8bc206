"""What a root's URL means: which kind of store, and how its object names begin."""

from pathlib import Path
from urllib.parse import urlsplit

from pipeline.backends import Backend
from pipeline.localbackend import LocalBackend
from pipeline.objectbackend import ObjectBackend, s3_options
from schemas.config import StorageSection
from schemas.errors import ConfigError


def open_backend(root: str, settings: StorageSection) -> tuple[Backend, str]:
    """Return the backend of a root's scheme, and the prefix of its object names.

    Raises:
        ConfigError: the scheme is not supported, or an S3 URL has no bucket.
    """
    parts = urlsplit(root) if "://" in root else None
    if parts is None:
        return LocalBackend(), str(Path(root).expanduser().resolve())
    if parts.scheme == "file":
        return LocalBackend(), str(Path(parts.path).resolve())
    if parts.scheme == "memory":
        return ObjectBackend("memory", {}), f"/{parts.netloc}{parts.path}"
    if parts.scheme != "s3":
        raise ConfigError(
            f"run.root = {root!r}: scheme {parts.scheme!r} is not supported; "
            "use a path, file://… or s3://bucket/prefix"
        )
    if not parts.netloc:
        raise ConfigError(f"run.root = {root!r} names no bucket; write s3://bucket/prefix")
    return ObjectBackend("s3", s3_options(settings)), f"{parts.netloc}{parts.path}"
