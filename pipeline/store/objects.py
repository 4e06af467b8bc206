"""Objects as a store: `s3://` and, for tests, `memory://`, through fsspec.

Promises: a filesystem is made afresh in each process, and none of a parent's is closed in a child.
"""

import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pipeline.store.attempts import current
from pipeline.store.backend import Leftover, ShortObjectError, Version, whole
from pipeline.store.faults import s3_code
from pipeline.store.s3.requests import (
    Tags,
    download_object,
    list_folder,
    read_object,
    unfinished_uploads,
)
from schemas.config.storage import StorageSection

BEYOND_THE_END = ("InvalidRange", "416")
"""What S3 says where a piece begins behind the last byte."""

MEMORY_LOCK = threading.Lock()
"""Held while `memory://` writes: its create looks first and writes afterwards."""

LIVE: WeakValueDictionary[int, Any] = WeakValueDictionary()

INHERITED: list[Any] = []
"""Filesystems of the parent process, kept until this one ends: closing one here takes its sockets
off the epoll queue that both processes share, and the parent waits for replies in vain."""


os.register_at_fork(after_in_child=lambda: INHERITED.extend(LIVE.values()))


class ObjectBackend:
    """Objects behind an fsspec filesystem, made afresh in each process."""

    def __init__(self, protocol: str, options: dict[str, Any]) -> None:
        """Name the filesystem and its options; nothing is contacted yet."""
        self._protocol, self._options = protocol, options
        self._by_pid: dict[int, Any] = {}
        self._tags = Tags()

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

    def _run(self, work: Callable[..., Coroutine[Any, Any, Any]], *given: Any, **more: Any) -> Any:
        """Return what a coroutine returns; it is ended with the attempt that waits for it."""
        import asyncio

        future = asyncio.run_coroutine_threadsafe(work(*given, **more), self._fs.loop)
        current().on_cancel(future.cancel)
        return future.result()

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        if self._protocol == "memory":
            return bytes(self._fs.cat_file(name))
        return bytes(self._run(read_object, self._fs, name, current(), self._tags))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of objects, asked for at once."""
        names, starts, stops = ([r[i] for r in ranges] for i in range(3))
        if self._protocol == "memory":
            return whole(ranges, self._fs.cat_ranges(names, starts, stops, on_error="raise"))
        current().expect(sum(stop - start for _, start, stop in ranges))
        work = self._fs._cat_ranges
        try:
            pieces = self._run(work, names, starts, stops, on_error="raise")
        except Exception as error:
            if s3_code(error) in BEYOND_THE_END:
                raise ShortObjectError(names[0]) from error
            raise
        return whole(ranges, pieces)

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Put an object in one request; with If-None-Match for `create`."""
        mode = "create" if create else "overwrite"
        if self._protocol == "memory":
            with MEMORY_LOCK:
                self._fs.pipe_file(name, data, mode=mode)
        else:
            current().expect(len(data))
            self._run(self._fs._pipe_file, name, data, mode=mode)

    def version(self, name: str) -> Version:
        """Return an object's version."""
        if self._protocol == "memory":
            info = self._fs.info(name)
            age_s = (datetime.now(UTC) - info["created"]).total_seconds()
            return Version(str(info["created"]), age_s, info["size"])
        reply = self._head(name)
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
            current().expect(len(data))
            self._run(self._fs._pipe_file, name, data, IfMatch=version.tag)

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects in a folder, always asked afresh."""
        return self._listed(folder, "file")

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder, always asked afresh."""
        return self._listed(folder, "directory")

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""
        if self._protocol == "memory":
            return bool(self._fs.exists(name))
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        return True

    def _head(self, name: str) -> Any:
        bucket, key, _ = self._fs.split_path(name)
        return self._run(self._fs._call_s3, "head_object", Bucket=bucket, Key=key)

    def upload(self, name: str, path: Path) -> None:
        """Upload a file; a large one in parts that become visible together."""
        if self._protocol == "memory":
            self._fs.put_file(str(path), name)
        else:
            current().expect(path.stat().st_size)
            self._run(self._fs._put_file, str(path), name)

    def download(self, name: str, path: Path) -> None:
        """Download an object."""
        if self._protocol == "memory":
            self._fs.get_file(name, str(path))
        else:
            self._run(download_object, self._fs, name, path, current())

    def delete(self, name: str) -> None:
        """Remove an object."""
        if self.exists(name):
            self._fs.rm_file(name)

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the unfinished multipart uploads below a prefix; other stores have none."""
        return list(unfinished_uploads(self._fs, folder)) if self._protocol == "s3" else []

    def discard(self, leftover: Leftover) -> None:
        """Abort a multipart upload."""
        bucket, key, _ = self._fs.split_path(leftover.name)
        which = {"Bucket": bucket, "Key": key, "UploadId": leftover.upload}
        self._run(self._fs._call_s3, "abort_multipart_upload", **which)

    def _listed(self, folder: str, kind: str) -> set[str]:
        try:
            if self._protocol == "memory":
                found = self._fs.ls(folder, detail=True)
            else:  # s3fs's own `find` takes a refused or failed listing for an empty one
                found = self._run(list_folder, self._fs, folder, current())
        except FileNotFoundError as error:
            if s3_code(error) == "NoSuchBucket":
                raise
            return set()
        names = {
            e["name"].rstrip("/") if kind == "directory" else e["name"]
            for e in found
            if e["type"] == kind and e["name"].strip("/") != folder.strip("/")
        }
        return {name.rsplit("/", 1)[1] for name in names} - {""}  # some list the folder itself


def s3_options(settings: StorageSection) -> dict[str, Any]:
    """Return the options of an s3fs filesystem."""
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
