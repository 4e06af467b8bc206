"""Units of a round that one process of a machine reads and decodes, and all of them train from.

Promises: who needs a unit first makes it, and the others map its file; a process that dies in
between holds nobody up; where files cannot be had, each process makes what it needs. Must not:
let files take room that others need.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.learner.machine.files import map_batch, size_of, write_batch
from pipeline.learner.ranks import Ranks, gather_objects, together
from pipeline.learner.sequences import Batch, Share
from pipeline.store import interrupts
from pipeline.store.disk.scratch import scratch

LOOK_S = 0.01
"""Seconds after which it is looked again whether another process has made a unit."""

SPARE = 8
"""A file is left only where its disk has room for so many of its size."""


class SharedUnits:
    """Files of units in a folder of a machine."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Share nothing yet.

        Args:
            folder: the same one for all processes.
            keep: files that stay; who has mapped an older one keeps that.
        """
        self._folder, self._keep = folder, keep

    def get(self, unit: int, make: Callable[[], Batch]) -> Batch:
        """Return a unit, as another process of the machine has made it, or made here for all.

        Args:
            unit: its number.
            make: reads and decodes it.
        """
        path = self._folder / f"{unit}.unit"
        with suppress(OSError):
            return map_batch(path)
        with ExitStack() as stack:
            try:
                stack.enter_context(_alone_at(path.with_suffix(".lock")))
            except OSError:  # whoever made the folder is gone, or its disk is full
                return make()
            with suppress(OSError):
                return map_batch(path)
            made = make()
            with suppress(OSError):
                self._leave(path, made)
                return map_batch(path)
            return made

    def _leave(self, path: Path, made: Batch) -> None:
        """Leave a unit for the others, and remove the oldest ones."""
        if shutil.disk_usage(self._folder).free < SPARE * size_of(made):
            return
        write_batch(path, made)
        others = [other for other in self._folder.glob("*.unit") if other != path]
        ages = {other: other.stat().st_mtime_ns for other in others if other.exists()}
        for old in sorted(ages, key=lambda other: ages[other])[: len(ages) + 1 - self._keep]:
            old.unlink(missing_ok=True)


@contextmanager
def sharing_units(ranks: Ranks, *, keep: int) -> Iterator[Share | None]:
    """Give how processes of this machine share units, None where this one is alone on it.

    Every process must call.
    """
    first = ranks.rank - ranks.local_rank
    makes = gather_objects(first).count(first) > 1 and ranks.local_rank == 0
    with ExitStack() as stack:
        mine = together(lambda: str(stack.enter_context(scratch("units"))) if makes else None)
        place = gather_objects(mine)[first]
        yield None if place is None else SharedUnits(Path(place), keep=keep).get


@contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """Hold a lock for the length of a block; it is free again when its holder dies."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while not _locks(descriptor):
            interrupts.check()
            time.sleep(LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
