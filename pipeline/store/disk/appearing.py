"""Files and folders of people's own: there whole and durable under a name that was free, or not.

Promises: until then all lies in a locked folder beside the name, which any later call clears away
once its process is gone. Replaces nothing.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store.disk.scratch import disk_fault, full_disk, scratch
from schemas.errors import ConfigError
from schemas.foreign import printable

TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
"""What a disk says where something has the name by now."""


def require_free(target: Path) -> None:
    """Make sure that nothing has a name, and that it could be given.

    Raises:
        ConfigError: it is taken, or what should hold it is no folder.
    """
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long, or links in a circle
        name = printable(str(target))
        raise ConfigError(f"{name} cannot be made ({error.strerror}): name another") from error
    else:
        raise ConfigError(
            f"{printable(str(target))} is there already, and export overwrites nothing: name "
            "another"
        )
    above = next(place for place in target.absolute().parents if os.path.lexists(place))
    if not above.is_dir():
        raise ConfigError(
            f"{printable(str(target))} cannot be made, for {printable(str(above))} is no folder: "
            "name another"
        )


@contextmanager
def appearing(target: Path, *, folder: bool) -> Iterator[Path]:
    """Give a place to write to, and make it the target when all went well.

    Args:
        target: the name.
        folder: whether it is to be a folder, which is given empty; else no file is there yet.

    Raises:
        ConfigError: the name is taken, by now or before.
        StorageError: its disk cannot be written.
    """
    require_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = disk_fault(error) or f"the folder {target.parent} cannot be made"
        raise full_disk(printable(reason), error, target.parent) from error
    with scratch("export", beside=target.parent) as room:
        made = room / "made"
        if folder:
            made.mkdir()
        yield made
        _flush(made)
        try:
            if folder:
                made.rename(target)  # fails where a folder with files was created in the meantime
            else:
                os.link(made, target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            name = printable(str(target))
            raise ConfigError(f"{name} was created in the meantime; name another") from error
        _flush_one(target.parent)


def _flush(path: Path) -> None:
    """Have a disk keep a file, or all of a folder."""
    for inside in (path, *path.rglob("*")):
        _flush_one(inside)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
