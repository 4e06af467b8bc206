"""Processes that must end with the one that started them, and those that did not.

A child finds its owner in its environment. Where the kernel can, it ends the child with the owner;
elsewhere, and for what was started before, `find_orphans` names what is left.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

OWNER = "OPD_ENGINE_OF"
"""Variable that names the owner of an engine's processes: its id and when it was started."""

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""What keeps a Python that we start from importing modules of the folder that it starts in."""

PATIENCE_S, POLL_S = 10.0, 0.05
"""Seconds that a process may take to end, and between two looks."""

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

# loaded here, for a child that has just been forked should load nothing
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Orphan:
    """A process of an engine whose owner is gone."""

    pid: int
    command: str
    owner: int
    memory_bytes: int
    """Resident memory; what it holds of a GPU is not in it."""


def owner_mark() -> dict[str, str]:
    """Return the variables that mark a child of this process."""
    import psutil

    started = psutil.Process().create_time()
    # without the second, a process that renames itself may overwrite its environment
    return {OWNER: f"{os.getpid()}:{started:.2f}", "SPT_NOENV": "1"}


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread that started it does, on Linux.

    Args:
        number: the signal.
    """
    if _LIBC is not None:
        _LIBC.prctl(PARENT_DEATH_SIGNAL, number)


def end_engine_with_parent() -> None:
    """End a marked process with its parent: vLLM calls this in every process that it starts.

    vLLM finds it as one of its plugins, so it also runs where opd has started nothing.
    """
    if OWNER in os.environ and int(os.environ[OWNER].partition(":")[0]) != os.getpid():
        end_with_parent()


class Offspring:
    """The processes that Python's `multiprocessing` starts here, and theirs, from a moment on."""

    def __init__(self) -> None:
        """Begin: what is there already is not meant."""
        self._before = multiprocessing.active_children()
        self._found: list[Any] = []

    def note(self) -> None:
        """Note those that are there now."""
        import psutil

        for child in multiprocessing.active_children():
            if child not in self._before and child.pid is not None:
                with suppress(psutil.Error):  # it has just ended
                    process = psutil.Process(child.pid)
                    self._found += [process, *process.children(recursive=True)]

    def await_end(self) -> None:
        """Wait until those that were noted, and were told to end, are gone; kill those that stay.

        Until then they hold memory that the next engine needs.
        """
        import psutil

        deadline = time.monotonic() + PATIENCE_S
        while left := [process for process in self._found if _runs(process)]:
            if time.monotonic() > deadline:
                for process in left:
                    with suppress(psutil.Error):
                        process.kill()
            time.sleep(POLL_S)
        multiprocessing.active_children()  # takes note of its own that have ended


def find_orphans() -> list[Orphan]:
    """Return the engine processes of this user whose owner is gone."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(OWNER)
            if mark is None or _is_there(mark):
                continue
            command = " ".join(process.cmdline()).strip() or process.name()
            memory = process.memory_info().rss
        except (psutil.Error, OSError):
            continue
        owner = int(mark.partition(":")[0])
        found.append(Orphan(process.pid, command[:80], owner, memory))
    return sorted(found, key=lambda orphan: orphan.pid)


def _runs(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _is_there(mark: str) -> bool:
    import psutil

    pid, _, started = mark.partition(":")
    try:
        process = psutil.Process(int(pid))
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and f"{process.create_time():.2f}" == started
    except (psutil.Error, ValueError):
        return False
