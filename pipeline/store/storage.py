"""A root and its verbs: whatever is asked of any kind of store is asked here."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.store.attempts import Pace
from pipeline.store.backend import Leftover, Version
from pipeline.store.disk.files import file_sha256
from pipeline.store.disk.local import LocalBackend
from pipeline.store.kinds import open_backend
from pipeline.store.retry import with_retries
from schemas.config.storage import StorageSection
from schemas.errors import DataError, StorageError
from schemas.foreign import excerpt
from schemas.forms import is_key, is_part
from schemas.records.shards import Shard

T = TypeVar("T")

FIRST_CONTACT_S = 15.0
"""Longest patience before the store has answered for the first time."""

READS = 3
"""Times that an object is read at most before its bytes count as damaged."""


class Storage:
    """A root and its verbs; keys are relative to the root, with `/` between parts."""

    def __init__(self, root: str, settings: StorageSection | None = None) -> None:
        """Name the store; nothing is contacted yet.

        Args:
            root: a path, `file://…`, `s3://bucket/prefix` or `memory://name`.
            settings: time-outs and client options.

        Raises:
            ConfigError: it names no place that can be a store.
        """
        settings = settings or StorageSection()
        self.root = root.rstrip("/") or root
        self._backend, self._prefix = open_backend(root, settings)
        self._met = False
        self.retry_s = settings.retry_s
        """Seconds for which a failing request is repeated."""
        silence_s = settings.connect_timeout_s + settings.read_timeout_s
        self._pace = Pace(silence_s, settings.min_bytes_per_s)
        self.lease_s, self.stall_s = settings.lease_s, settings.stall_s
        """Seconds after which an object that says who works is out of date, and of silence after
        which a worker lets its own become so."""
        self.single_writer = settings.single_writer
        """Whether nobody else writes meanwhile, so that a look tells what may be created."""

    @property
    def local_root(self) -> Path | None:
        """The folder behind the root, or None where the store is not local."""
        return Path(self._prefix) if isinstance(self._backend, LocalBackend) else None

    def url(self, key: str) -> str:
        """Return the full name of a key, as messages show it."""
        return f"{self.root}/{key}"

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""
        try:
            return self._do(
                f"reading {self.url(key)}", partial(self._backend.read, self._name(key))
            )
        except FileNotFoundError:
            return None

    def read_checked(self, key: str, check: Callable[[bytes], T]) -> T | None:
        """Return what a check makes of an object's bytes, or None where there is none.

        Bytes that fail are read again: what was damaged on its way comes right, what is stored
        damaged comes the same.

        Raises:
            DataError: from the check.
        """
        failed: list[bytes] = []
        while (data := self.get(key)) is not None:
            try:
                return check(data)
            except DataError:
                if data in failed or len(failed) == READS - 1:
                    raise
                failed.append(data)
        return None

    def exists(self, key: str) -> bool:
        """Return whether an object is there."""
        return self._do(
            f"looking up {self.url(key)}", partial(self._backend.exists, self._name(key))
        )

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes] | None:
        """Return pieces of objects, or None where one of the objects is gone or too short.

        Args:
            ranges: key, first byte and byte after the last of each piece, none of them empty.
        """
        pieces = [(self._name(key), start, stop) for key, start, stop in ranges]
        try:
            return self._do(
                f"reading parts of {self.url(ranges[0][0]) if ranges else self.root}",
                partial(self._backend.read_ranges, pieces),
            )
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object whose key is named after its content, so that a repeat is harmless."""
        self._write(key, partial(self._backend.write, self._name(key), data, create=False))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that is not there yet; return False where it is.

        A reply that was lost on the way makes the repeat find our own object: equal bytes count
        as created.
        """
        if self.single_writer:  # the store itself might write over what stands
            stands = self.get(key)
            if stands is None:
                self.put(key, data)
            return stands is None or stands == data
        action = partial(self._backend.write, self._name(key), data, create=True)
        try:
            self._write(key, action)
        except FileExistsError:
            return self.get(key) == data
        return True

    def version(self, key: str) -> Version | None:
        """Return what stands at a key now, for `replace`; None where nothing does."""
        try:
            return self._do(
                f"looking up {self.url(key)}", partial(self._backend.version, self._name(key))
            )
        except FileNotFoundError:
            return None

    def replace(self, key: str, data: bytes, version: Version) -> bool:
        """Write over an object that is still of a version; return False where it is not.

        A reply that was lost on the way makes the repeat find our own object: equal bytes count
        as written.
        """
        action = partial(self._backend.replace, self._name(key), data, version)
        try:
            self._do(f"writing {self.url(key)}", action)
        except (FileExistsError, FileNotFoundError):
            return self.get(key) == data
        return True

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects directly in a folder; "" is the root.

        Names that no key can have are left out: whoever made these, it was not opd.
        """
        found = self._do(
            f"listing {self.url(folder)}", partial(self._backend.names, self._folder(folder))
        )
        return set(filter(is_part, found))

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders directly in a folder, as `names` does."""
        found = self._do(
            f"listing {self.url(folder)}",
            partial(self._backend.folders, self._folder(folder).rstrip("/")),
        )
        return set(filter(is_part, found))

    def upload(self, key: str, path: Path) -> Shard:
        """Write an object from a local file; return what was written."""
        digest = file_sha256(path)
        self._write(key, partial(self._backend.upload, self._name(key), path))
        return Shard(key=key, sha256=digest, bytes=path.stat().st_size, rows=0, tokens=0)

    def download(self, shard: Shard, path: Path) -> None:
        """Write a local file from an object and verify it.

        Raises:
            DataError: the object is missing or is not what the shard says.
        """
        action = partial(self._backend.download, self._name(shard.key), path)
        for left in reversed(range(READS)):
            try:
                self._do(f"reading {self.url(shard.key)}", action)
            except FileNotFoundError as error:
                raise self._missing(shard.key) from error
            try:
                return self._verify(shard, path.stat().st_size, file_sha256(path))
            except DataError:
                if not left:
                    raise

    def read_shard(self, shard: Shard) -> bytes:
        """Return the bytes of a shard, verified.

        Raises:
            DataError: the object is missing or is not what the shard says.
        """
        if self.local_root is not None:
            self._check_size(shard)

        def verified(data: bytes) -> bytes:
            self._verify(shard, len(data), hashlib.sha256(data).hexdigest())
            return data

        found = self.read_checked(shard.key, verified)
        if found is None:
            raise self._missing(shard.key)
        return found

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self._do(f"deleting {self.url(key)}", partial(self._backend.delete, self._name(key)))

    def leftovers(self) -> list[Leftover]:
        """Return what killed writers left below the root: temporary files, unfinished uploads."""
        action = partial(self._backend.leftovers, self._prefix)
        return self._do(f"listing unfinished writes of {self.root}", action)

    def discard(self, leftover: Leftover) -> None:
        """Free the room of an unfinished write; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self._do(f"discarding {leftover.name}", partial(self._backend.discard, leftover))

    def _name(self, key: str) -> str:
        """Return the full name of a clean key; no other one leaves the root, or reaches a store."""
        if not is_key(key):
            raise DataError(
                f"'{excerpt(key)}' is no key of {self.root}: expected parts between '/', none of "
                "them empty or '..', without backslashes and control characters. What names it "
                "was damaged or made by a stranger: restore or delete that"
            )
        return f"{self._prefix}/{key}"

    def _folder(self, key: str) -> str:
        """Return the full name of a folder; "" is the root."""
        return self._name(key) if key else f"{self._prefix}/"

    def _do(self, what: str, action: Callable[[], T]) -> T:
        patience = self.retry_s if self._met else min(self.retry_s, FIRST_CONTACT_S)
        try:
            result = with_retries(action, what=what, patience_s=patience, pace=self._pace)
        except (FileNotFoundError, FileExistsError):
            self._met = True
            raise
        self._met = True
        return result

    def _write(self, key: str, action: Callable[[], None]) -> None:
        try:
            self._do(f"writing {self.url(key)}", action)
        except FileNotFoundError as error:
            raise StorageError(
                f"writing {self.url(key)} failed: the bucket or folder does not exist. Create it "
                "or correct run.root, then run the same command again"
            ) from error

    def _missing(self, key: str) -> DataError:
        return DataError(
            f"{self.url(key)} is missing although a manifest names it: it was deleted. Restore it; "
            "scores are made anew by `opd score --only-invalid`, anything else by removing the "
            "manifest that names it and running the stage again"
        )

    def _check_size(self, shard: Shard) -> None:
        """Refuse a file of another length before it is read: a look at a file is no request."""
        with suppress(OSError):  # whoever reads it says what is wrong with it
            size = os.stat(self._name(shard.key)).st_size
            if size > shard.bytes:
                self._verify(shard, size, None)

    def _verify(self, shard: Shard, size: int, digest: str | None) -> None:
        if size != shard.bytes or digest != shard.sha256:
            found = "" if digest is None else f" with sha256 {digest[:16]}…"
            raise DataError(
                f"{self.url(shard.key)} is corrupt: found {size} bytes{found}, "
                f"expected {shard.bytes} bytes with {shard.sha256[:16]}…. Restore the object; "
                "scores are made anew by `opd score --only-invalid`, anything else by deleting it "
                "with its commit and manifest and running the stage again"
            )
