"""A folder as a store: files that appear whole or not at all, one process at a time to replace."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pipeline.store.attempts import ENTRY_BYTES, current
from pipeline.store.backend import Leftover, Version, whole
from pipeline.store.disk import files
from pipeline.store.disk.files import TEMPORARY

COPY_BYTES = 8 << 20


def unfinished_files(folder: str, now_s: float) -> Iterator[Leftover]:
    """Yield the temporary files below a folder.

    Args:
        folder: where to look.
        now_s: time of the clock that stamps the files.
    """
    for path in sorted(Path(folder).rglob(f"{TEMPORARY}*")):
        try:
            yield Leftover(str(path), None, now_s - os.stat(path).st_mtime)
        except FileNotFoundError:  # finished meanwhile
            continue


class LocalBackend:
    """Files below a folder."""

    def __init__(self) -> None:
        """Have seen nothing yet."""
        self._unfinished: dict[str, list[str]] = {}
        """Temporary files that were met in a folder, to remove the dead of them when it is written
        to: a look at a store changes nothing, and none is taken for this alone."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return files.read(Path(name))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return pieces of files."""
        pieces = []
        for name, group in groupby(ranges, key=itemgetter(0)):
            with files.opened(name) as file:
                for _, start, stop in group:
                    pieces.append(os.pread(file, stop - start, start))
                    current().arrived(stop - start)
        return whole(ranges, pieces)

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Write a file atomically."""
        for left in self._unfinished.pop(os.path.dirname(name), ()):
            with suppress(OSError):
                files.remove_dead(Path(left))
        (files.create if create else files.replace)(Path(name), data)

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
            files.replace(Path(name), data)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder, unfinished ones left out."""
        try:
            names = {entry.name for entry in _entries(folder) if entry.is_file()}
        except FileNotFoundError:
            return set()
        unfinished = [name for name in names if name.startswith(files.TEMPORARY)]
        if unfinished:
            self._unfinished[folder] = [f"{folder}/{name}" for name in unfinished]
        return names.difference(unfinished)

    def folders(self, folder: str) -> set[str]:
        """Return the names of the folders in a folder."""
        try:
            return {entry.name for entry in _entries(folder) if entry.is_dir()}
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        """Return whether a file is there."""
        return Path(name).exists()

    def upload(self, name: str, path: Path) -> None:
        """Copy a file in, atomically."""
        files.copy_in(Path(name), path)

    def download(self, name: str, path: Path) -> None:
        """Copy a file out."""
        files.copy_out(Path(name), path)

    def delete(self, name: str) -> None:
        """Remove a file, and its folder where that is empty then."""
        Path(name).unlink(missing_ok=True)
        with suppress(OSError):
            Path(name).parent.rmdir()

    def leftovers(self, folder: str) -> list[Leftover]:
        """Return the temporary files below a folder."""
        if not Path(folder).is_dir():
            return []
        with _locked(Path(folder)) as now_s:
            return list(unfinished_files(folder, now_s))

    def discard(self, leftover: Leftover) -> None:
        """Remove a temporary file, unless somebody writes it now."""
        files.remove_dead(Path(leftover.name))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    attempt = current()
    with os.scandir(folder) as entries:
        for entry in entries:
            attempt.arrived(ENTRY_BYTES)
            yield entry


@contextmanager
def _locked(folder: Path) -> Iterator[float]:
    """Keep other processes of a folder out for the length of a block; give the folder's time.

    Where it may not be written, the time is this machine's: nobody can take anything there anyway.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            os.utime(descriptor)
            now_s = os.fstat(descriptor).st_mtime
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            now_s = time.time()
        yield now_s
    finally:
        os.close(descriptor)


def _file_tag(name: str) -> str:
    found = os.stat(name)
    return f"{found.st_ino}-{found.st_mtime_ns}"
