"""Temporary folders of this process, and those that processes which are gone left behind.

A folder is locked for as long as its process lives, whatever ends it: a folder of ours that can be
locked is dead, in other containers of the machine too. Promises: each first use in a process
removes what is dead; a full disk ends in a `StorageError` that names it, whichever library met it.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from schemas.errors import OpdError, StorageError

PREFIX = "opd."
"""How the names of temporary folders begin; `opd-` was that of folders without a lock."""

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than the file system or a limit allows",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk cannot be read or written",
}
"""Faults of a local disk, in words."""

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries, safetensors and tokenizers among them, write an errno into their text."""

TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos")
"""What `torch.save` says where it could not write; it keeps no errno."""

PROBE_BYTES = 1 << 16


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Give an empty temporary folder for the length of a block.

    Args:
        purpose: a word in its name.

    Raises:
        StorageError: the disk of the folder for temporary files cannot be written.
    """
    _sweep_once(tempfile.gettempdir(), os.getpid())
    folder, descriptor = _locked_folder(purpose)
    try:
        yield folder
    except OpdError:
        raise
    except Exception as error:
        reason = disk_fault(error) or _probed(folder)
        if reason is None:
            raise
        raise full_disk(reason, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def disk_fault(error: BaseException) -> str | None:
    """Return the fault of a local disk that an exception tells of, or None where it tells of none.

    The errno of the exception or of one behind it counts; libraries that keep none put it, or a
    phrase of their own, into their text.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        found = RUST_ERROR.search(str(seen))
        reason = FULL.get(number or (int(found[1]) if found else 0))
        if reason is None and any(words in str(seen) for words in TORCH_WRITER):
            reason = FULL[errno.ENOSPC]
        if reason is not None:
            return reason
        seen = seen.__cause__ or seen.__context__
    return None


def full_disk(reason: str, error: BaseException) -> StorageError:
    """Return the error that a local disk outside the store cannot be used."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return StorageError(
        f"{reason} ({text}). Free room in the folder for temporary files, {tempfile.gettempdir()} "
        "(TMPDIR names another), then run the same command again: nothing is half-written"
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


def _locked_folder(purpose: str) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}."))
        except OSError as error:
            raise full_disk(disk_fault(error) or "no folder can be made", error) from error
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
