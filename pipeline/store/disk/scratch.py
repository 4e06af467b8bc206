"""Temporary folders of this process, and those that processes which are gone left behind.

A folder is locked for as long as its process lives, whatever ends it: a folder of ours that can be
locked is dead, in other containers of the machine too. Promises: each first use in a process
removes what is dead; a full disk ends in a `StorageError` that names it, whichever library met it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pipeline.store.faults import fault_of
from schemas.errors import OpdError, StorageError

PREFIX = "opd."
"""How the names of temporary folders begin; `opd-` was that of folders without a lock."""

PROBE_BYTES = 1 << 16


@contextmanager
def scratch(purpose: str, beside: Path | None = None) -> Iterator[Path]:
    """Give an empty temporary folder for the length of a block.

    Args:
        purpose: a word in its name.
        beside: the folder that it is made in; default that for temporary files.

    Raises:
        StorageError: the disk cannot be written.
    """
    _sweep_once(str(beside or tempfile.gettempdir()), os.getpid())
    folder, descriptor = _locked_folder(purpose, beside)
    try:
        yield folder
    except OpdError:
        raise
    except Exception as error:
        reason = disk_fault(error) or _probed(folder)
        if reason is None:
            raise
        raise full_disk(reason, error, beside) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def disk_fault(error: BaseException) -> str | None:
    """Return the fault of a local disk that an exception tells of, or None where it tells of none.

    The number of the exception or of one behind it counts; libraries that keep none put it, or a
    phrase of their own, into their text.
    """
    fault = fault_of(error)
    return fault.reason if fault is not None and fault.disk else None


def full_disk(reason: str, error: BaseException, place: Path | None = None) -> StorageError:
    """Return the error that a local disk outside the store cannot be used.

    Args:
        reason: what is wrong with it.
        error: what met it.
        place: a folder on it; default that for temporary files.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    temporary = f"the folder for temporary files, {tempfile.gettempdir()} (TMPDIR names another)"
    return StorageError(
        f"{reason} ({text}). Free room in {place or temporary}, then run the same command again: "
        "nothing is half-written"
    )


def sweep(parent: Path) -> list[Path]:
    """Remove the temporary folders of processes that are gone; return what was removed."""
    gone = []
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                gone.append(folder)
            finally:
                os.close(descriptor)
    return gone


@cache
def _sweep_once(parent: str, process: int) -> None:
    sweep(Path(parent))


def _locked_folder(purpose: str, beside: Path | None) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}.", dir=beside))
        except OSError as error:
            reason = disk_fault(error) or "no folder can be made"
            raise full_disk(reason, error, beside) from error
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process swept it before it was opened
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)  # another process swept it before it was locked


def _probed(folder: Path) -> str | None:
    """Return why nothing more can be written to a folder, or None where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return disk_fault(error)
    return None
