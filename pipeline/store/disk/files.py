"""Local files that appear whole or not at all, with the permissions that the umask leaves.

fsspec's own `file://` create is exists-then-write: racy, and torn by a kill. Here a file is
written beside its target, flushed to disk, then linked (create) or renamed (replace) into place.
"""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.store.attempts import current

COPY_BYTES = 8 << 20

TEMPORARY = ".tmp-"
"""How the name of an unfinished file begins."""

PIECE_BYTES = 8 << 20
"""Bytes that are read or written at a time."""

Publish = Callable[[str, Path], None]
"""Gives a finished file its name: `os.link` or `os.replace`."""


def create(path: Path, data: bytes) -> None:
    """Make a file that does not exist yet, whole and durable.

    Raises:
        FileExistsError: the file exists, from whoever.
        OSError: the disk is full, read-only or has no hard links.
    """
    current().expect(len(data))
    with _published(path, os.link) as descriptor:
        _write(descriptor, data)


def replace(path: Path, data: bytes) -> None:
    """Make or replace a file, whole and durable.

    Raises:
        OSError: the disk is full or read-only.
    """
    current().expect(len(data))
    with _published(path, os.replace) as descriptor:
        _write(descriptor, data)


def copy_in(path: Path, source: Path) -> None:
    """Make or replace a file, whole and durable, by the bytes of another.

    Raises:
        OSError: the disk is full or read-only, or the other file cannot be read.
    """
    with _published(path, os.replace) as descriptor, opened(source) as other:
        current().expect(os.fstat(other).st_size)  # for the flush, of which nothing is seen
        while piece := os.read(other, PIECE_BYTES):
            _write(descriptor, piece)


def copy_out(source: Path, path: Path) -> None:
    """Write a file by the bytes of another, neither whole nor durable until it is done.

    Raises:
        OSError: as `copy_in`.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with opened(source) as other:
            while piece := os.read(other, PIECE_BYTES):
                _write(descriptor, piece)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: it cannot be read, or gave less than its length.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        pieces = []
        while piece := os.read(descriptor, min(PIECE_BYTES, size + 1)):
            current().arrived(len(piece))
            pieces.append(piece)
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) < size:
        raise OSError(f"{path} gave {len(data)} bytes, not {size}")
    return data


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Give the descriptor of a file to be read.

    Raises:
        OSError: it is none, such as a pipe that nobody writes to.
    """
    # a pipe would be waited for; of a file, O_NONBLOCK says nothing
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is no file but a pipe, socket or device")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _published(path: Path, publish: Publish) -> Iterator[int]:
    """Give a descriptor to write to, and publish what was written at the end of the block."""
    descriptor, temporary = _unfinished(path.parent)
    try:
        yield descriptor
        os.fsync(descriptor)
        publish(temporary, path)
        _flush_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.close(descriptor)


def _unfinished(folder: Path) -> tuple[int, str]:
    """Return a new file in a folder, locked until its descriptor is closed, and its name."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileNotFoundError:  # the folder was empty, and whoever emptied it removed it
            continue
        with suppress(OSError):  # a file system without locks: nobody can take it for dead
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(temporary):
            return descriptor, temporary
        os.close(descriptor)  # a clean-up took it for dead before it was locked


def remove_dead(path: Path) -> bool:
    """Remove an unfinished file, unless it is being written; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        done = os.write(descriptor, left[:PIECE_BYTES])
        current().arrived(done)
        left = left[done:]


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # the file was deleted by now, and its folder with it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()
