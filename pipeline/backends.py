"""Kinds of store: local folders and, through fsspec, `s3://` and `memory://`.

Promises: an object is written whole or not at all; no listing is cached; a filesystem is made
afresh in each process. Must not: retry or translate errors (`storage` does).
"""

import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from pipeline import localfiles
from pipeline.leftovers import Leftover, abort_upload, unfinished_files, unfinished_uploads
from schemas.config import StorageSection
from schemas.errors import ConfigError

MEMORY_LOCK = threading.Lock()
"""Held while `memory://` writes: its create looks first and writes afterwards."""

LIVE: WeakValueDictionary[int, Any] = WeakValueDictionary()
INHERITED: list[Any] = []
"""Filesystems of the parent process, kept until this one ends: closing one here takes its sockets
off the epoll queue that both processes share, and the parent waits for replies in vain."""

os.register_at_fork(after_in_child=lambda: INHERITED.extend(LIVE.values()))


@dataclass(frozen=True)
class Version:
    """What stands at a name."""

    tag: str
    """Changes with every write."""
    age_s: float
    """Seconds since it was written, by the store's own clock."""
    num_bytes: int
    """Length of the object."""


class Backend(Protocol):
    """What a kind of store must do with full object names."""

    def read(self, name: str) -> bytes:
        """Return all bytes; FileNotFoundError where there is no such object."""

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of objects (name, first byte, byte after the last), whole or not at all."""

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Write all bytes; FileExistsError where `create` finds the object."""

    def version(self, name: str) -> Version:
        """Return the version of an object; FileNotFoundError where there is none."""

    def replace(self, name: str, data: bytes, version: Version) -> None:
        """Write over an object of a version; FileExistsError where it is another or none."""

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects directly in a folder, without it."""

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders directly in a folder."""

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""

    def upload(self, name: str, path: Path) -> None:
        """Write an object from a local file."""

    def download(self, name: str, path: Path) -> None:
        """Write a local file from an object."""

    def delete(self, name: str) -> None:
        """Remove an object if it is there."""

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the unfinished writes below a folder."""

    def discard(self, leftover: Leftover) -> None:
        """Free the room of an unfinished write."""


class LocalBackend:
    """Files below a folder."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return Path(name).read_bytes()

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of files."""
        pieces = []
        for name, group in groupby(ranges, key=itemgetter(0)):
            with open(name, "rb", buffering=0) as file:
                pieces += [os.pread(file.fileno(), stop - start, start) for _, start, stop in group]
        return _whole(ranges, pieces)

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Write a file atomically."""
        (localfiles.create if create else localfiles.replace)(Path(name), data)

    def version(self, name: str) -> Version:
        """Return a file's version, its age told by the clock that stamps files."""
        with _locked(Path(name).parent) as now_s:
            found = os.stat(name)
            return Version(_file_tag(name), now_s - found.st_mtime, found.st_size)

    def replace(self, name: str, data: bytes, version: Version) -> None:
        """Replace a file of a version; one process of the folder at a time."""
        with _locked(Path(name).parent):
            if not Path(name).exists() or _file_tag(name) != version.tag:
                raise FileExistsError(name)
            localfiles.replace(Path(name), data)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder, unfinished ones left out."""
        try:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return set()
        return {name for name in names if not name.startswith(localfiles.TEMPORARY)}

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder."""
        try:
            with os.scandir(folder) as entries:
                return {entry.name for entry in entries if entry.is_dir()}
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """Return whether a file is there."""
        return Path(name).exists()

    def upload(self, name: str, path: Path) -> None:
        """Copy a file in, atomically."""
        target = Path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{localfiles.TEMPORARY}{uuid.uuid4().hex}"
        try:
            shutil.copyfile(path, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def download(self, name: str, path: Path) -> None:
        """Copy a file out."""
        shutil.copyfile(name, path)

    def delete(self, name: str) -> None:
        """Remove a file."""
        Path(name).unlink(missing_ok=True)

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the temporary files below a folder."""
        if not Path(folder).is_dir():
            return []
        with _locked(Path(folder)) as now_s:
            return list(unfinished_files(folder, now_s))

    def discard(self, leftover: Leftover) -> None:
        """Remove a temporary file."""
        Path(leftover.name).unlink(missing_ok=True)


class FsspecBackend:
    """Objects behind an fsspec filesystem, made afresh in each process."""

    def __init__(self, protocol: str, options: dict[str, Any]) -> None:
        """Name the filesystem and its options; nothing is contacted yet."""
        self._protocol, self._options = protocol, options
        self._by_pid: dict[int, Any] = {}

    @property
    def _fs(self) -> Any:
        pid = os.getpid()
        if pid not in self._by_pid:
            import fsspec

            filesystem = fsspec.filesystem(self._protocol, **self._options)
            if hasattr(filesystem, "retries"):
                filesystem.retries = 1  # `with_retries` is the only place that repeats
            self._by_pid, LIVE[id(filesystem)] = {pid: filesystem}, filesystem
        return self._by_pid[pid]

    def __getstate__(self) -> dict[str, Any]:
        """Leave connections behind when sent to another process."""
        return {**self.__dict__, "_by_pid": {}}

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self._fs.cat_file(name))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of objects, asked for at once."""
        names, starts, stops = ([r[i] for r in ranges] for i in range(3))
        return _whole(ranges, self._fs.cat_ranges(names, starts, stops, on_error="raise"))

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Put an object in one request; with If-None-Match for `create`."""
        with MEMORY_LOCK if self._protocol == "memory" else nullcontext():
            self._fs.pipe_file(name, data, mode="create" if create else "overwrite")

    def version(self, name: str) -> Version:
        """Return an object's version."""
        if self._protocol == "memory":
            info = self._fs.info(name)
            age_s = (datetime.now(UTC) - info["created"]).total_seconds()
            return Version(str(info["created"]), age_s, info["size"])
        bucket, key, _ = self._fs.split_path(name)
        reply = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        age_s = (now - reply["LastModified"]).total_seconds()
        return Version(reply["ETag"], age_s, reply["ContentLength"])

    def replace(self, name: str, data: bytes, version: Version) -> None:
        """Put an object with If-Match."""
        if self._protocol == "memory":
            with MEMORY_LOCK:
                if not self.exists(name) or self.version(name).tag != version.tag:
                    raise FileExistsError(name)
                self._fs.pipe_file(name, data)
        else:
            self._fs.pipe_file(name, data, IfMatch=version.tag)

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects in a folder, always asked afresh."""
        return self._listed(folder, "file")

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder, always asked afresh."""
        return self._listed(folder, "directory")

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""
        try:
            self._fs.info(name)
        except FileNotFoundError:
            return False
        return True

    def upload(self, name: str, path: Path) -> None:
        """Upload a file; a large one in parts that become visible together."""
        self._fs.put_file(str(path), name)

    def download(self, name: str, path: Path) -> None:
        """Download an object."""
        self._fs.get_file(name, str(path))

    def delete(self, name: str) -> None:
        """Remove an object."""
        if self.exists(name):
            self._fs.rm_file(name)

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the unfinished multipart uploads below a prefix; other stores have none."""
        return list(unfinished_uploads(self._fs, folder)) if self._protocol == "s3" else []

    def discard(self, leftover: Leftover) -> None:
        """Abort a multipart upload."""
        abort_upload(self._fs, leftover)

    def _listed(self, folder: str, kind: str) -> set[str]:
        try:
            # not `find`, which takes a refused or failed listing for an empty one
            found = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return set()
        names = {
            e["name"].rstrip("/") if kind == "directory" else e["name"]
            for e in found
            if e["type"] == kind and e["name"].strip("/") != folder.strip("/")
        }
        return {name.rsplit("/", 1)[1] for name in names} - {""}  # some list the folder itself


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
        return FsspecBackend("memory", {}), f"/{parts.netloc}{parts.path}"
    if parts.scheme != "s3":
        raise ConfigError(
            f"run.root = {root!r}: scheme {parts.scheme!r} is not supported; "
            "use a path, file://… or s3://bucket/prefix"
        )
    if not parts.netloc:
        raise ConfigError(f"run.root = {root!r} names no bucket; write s3://bucket/prefix")
    return FsspecBackend("s3", _s3_options(settings)), f"{parts.netloc}{parts.path}"


@contextmanager
def _locked(folder: Path) -> Iterator[float]:
    """Keep other processes of a folder out for the length of a block; give the folder's time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.utime(descriptor)
        yield os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _file_tag(name: str) -> str:
    found = os.stat(name)
    return f"{found.st_ino}-{found.st_mtime_ns}"


def _whole(ranges: Sequence[tuple[str, int, int]], pieces: list[bytes]) -> list[bytes]:
    for (name, start, stop), piece in zip(ranges, pieces, strict=True):
        if len(piece) != stop - start:
            raise OSError(f"{name} gave {len(piece)} bytes from byte {start}, not {stop - start}")
    return pieces


def _s3_options(settings: StorageSection) -> dict[str, Any]:
    return {
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "config_kwargs": {
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": settings.read_timeout_s,
            "max_pool_connections": settings.max_connections,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "request_checksum_calculation": settings.checksum_calculation,
            "s3": {"addressing_style": settings.addressing_style},
        },
    }
