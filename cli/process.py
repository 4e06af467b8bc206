"""What surrounds a command: signals, and standard streams that nobody reads.

The first signal asks (`pipeline.store.interrupts`), and the next safe point ends the work. Where
none comes for `GRACE_S`, or by a second signal, the main thread is made to raise where it stands;
and after `LAST_S` the process ends, whatever it does. Ended so, it leaves what `kill -9` leaves.
"""

import _thread
import io
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from typing import IO, Any

from pipeline.engines.processes import SAFE_PATH
from pipeline.store import interrupts
from schemas.errors import INTERRUPTED_EXIT_CODE

GRACE_S = 2.0
"""Seconds that a safe point may take to come."""

LAST_S = 30.0
"""Seconds that giving back what is held may take, such as ending a server."""

LOOK_S = 0.1


class _Course:
    """Signals of one command."""

    def __init__(self) -> None:
        self.over = self.lost = False

    def take(self, number: int, frame: Any) -> None:
        """Handle a signal, in the main thread; only what is safe anywhere is done here."""
        if self.over:
            os._exit(INTERRUPTED_EXIT_CODE)
        if interrupts.is_asked():
            if not interrupts.is_ending():
                raise interrupts.Interrupted
            return
        interrupts.ask()
        try:
            _thread.start_new_thread(self._insist, (os.getpid(),))  # `threading` takes locks
        except RuntimeError:
            raise interrupts.Interrupted from None

    def notice_lost(self, lost: "sys.UnraisableHookArgs") -> None:
        """Take note of an end that met code which may not raise (`__del__`)."""
        if isinstance(lost.exc_value, interrupts.Interrupted):
            self.lost = True
        else:
            sys.__unraisablehook__(lost)

    def _insist(self, process: int) -> None:
        begin, again_s = time.monotonic(), GRACE_S
        while not self.over and (waited_s := time.monotonic() - begin) < LAST_S:
            if not interrupts.is_ending() and (waited_s > again_s or self.lost):
                again_s, self.lost = LAST_S, False
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            time.sleep(LOOK_S)
        if not self.over:
            os.write(2, b"opd: interrupted; it ended in the middle of its work. Run the same ")
            os.write(2, b"command again to resume\n")
            os._exit(INTERRUPTED_EXIT_CODE)


class _Imports(MetaPathFinder):
    """Makes a safe point of each import: torch alone takes seconds and thousands of them."""

    def find_spec(self, *asked: Any) -> None:
        """Find nothing; raise again and again where a library is deaf to it."""
        here = threading.current_thread() is threading.main_thread()
        if here and interrupts.is_asked() and not interrupts.is_ending():
            raise interrupts.Interrupted


@contextmanager
def commands_end_in_order() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM an orderly end of what runs within a block."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(SAFE_PATH)  # torch, vLLM and multiprocessing start more of Python
    course = _Course()
    interrupts.forget()
    signal.signal(signal.SIGTERM, course.take)
    signal.signal(signal.SIGINT, course.take)
    sys.unraisablehook = course.notice_lost
    imports = _Imports()
    sys.meta_path.insert(0, imports)
    try:
        yield
    finally:
        sys.meta_path.remove(imports)
        course.over = True


class _Pipe(io.RawIOBase):
    """A file that swallows what is written once its reader is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return False: a terminal's reader does not go."""
        return False

    def write(self, data: Any) -> int:
        """Write, or do as if."""
        try:
            return os.write(self._descriptor, data)
        except BrokenPipeError:
            return memoryview(data).nbytes


@contextmanager
def streams_kept() -> Iterator[None]:
    """Let a command go on within a block where `| head` has read enough, or a stream is closed."""
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # or the next file that is opened would be the stream
    for name in ("stdout", "stderr"):
        file = getattr(sys, name)
        if file is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live
        elif file is getattr(sys, f"__{name}__") and _is_pipe(file):
            file.flush()
            setattr(sys, name, _deaf(file))
    try:
        yield
    finally:
        for file in (sys.stdout, sys.stderr):
            _emptied(file)


def _emptied(file: IO[str]) -> None:
    """Make sure that the interpreter's own flush of a stream does not fail at its end."""
    try:
        file.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, file.fileno())
        os.close(null)


def _is_pipe(file: IO[str]) -> bool:
    mode = os.fstat(file.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _deaf(file: Any) -> IO[str]:
    raw = _Pipe(file.fileno())
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=file.encoding,
        errors=file.errors,
        line_buffering=True,
    )
