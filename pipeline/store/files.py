"""Local files that appear whole or not at all.

fsspec's own `file://` create is exists-then-write: racy, and torn by a kill. Here a file is
written beside its target, flushed to disk, then linked (create) or renamed (replace) into place.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp-"
"""How the name of an unfinished file begins."""


def create(path: Path, data: bytes) -> None:
    """Make a file that does not exist yet, whole and durable.

    Raises:
        FileExistsError: the file exists, from whoever.
        OSError: the disk is full, read-only or has no hard links.
    """
    _publish(path, data, os.link)


def replace(path: Path, data: bytes) -> None:
    """Make or replace a file, whole and durable.

    Raises:
        OSError: the disk is full or read-only.
    """
    _publish(path, data, os.replace)


def _publish(path: Path, data: bytes, publish: Callable[[str, Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        publish(temporary, path)
        _flush_folder(path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
