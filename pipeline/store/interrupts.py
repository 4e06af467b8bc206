"""Ctrl-C and SIGTERM: a flag, and the safe points that end the work because of it.

A signal handler that raises does so in the middle of anything, and a library in C or Rust makes
another error of it. So the handler only asks; whoever can end in order calls `check`, which is a
sign of life too. Promises: it raises once in the main thread, so that what is held can be given
back; other threads stop at their next safe point.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL_S = 0.2
"""Seconds after which something that waits looks for a signal."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM came; nothing but the end of the process handles it."""


class _Course:
    """How far this process is on its way to its end, and when its work last went on."""

    asked = ending = False
    life_s = time.monotonic()


def ask() -> None:
    """Have the next safe point end the work; safe in a signal handler."""
    _Course.asked = True


def is_asked() -> bool:
    """Return whether a signal came."""
    return _Course.asked


def is_ending() -> bool:
    """Return whether what was held is given back already."""
    return _Course.ending


def settle() -> None:
    """Begin to give back what is held after a signal: safe points raise no more."""
    _Course.ending = _Course.asked


@contextmanager
def giving_back(error: BaseException | None) -> Iterator[None]:
    """Give back what is held, as `settle` does, for the length of a block.

    Where the holder's block has not ended by the signal, the next safe point still has to raise.

    Args:
        error: what the holder's block ended with.
    """
    was_ending = _Course.ending
    settle()
    try:
        yield
    finally:
        if not isinstance(error, Interrupted):
            _Course.ending = was_ending


def forget() -> None:
    """Begin a command: no signal came yet."""
    _Course.asked = _Course.ending = False


def check() -> None:
    """End the work here if a signal came; a safe point.

    Raises:
        Interrupted: it did.
    """
    if not _Course.asked:
        return
    if threading.current_thread() is threading.main_thread():
        if _Course.ending:
            return
        settle()
    raise Interrupted


def beat() -> None:
    """Tell that the work goes on; a safe point.

    Raises:
        Interrupted: a signal came.
    """
    _Course.life_s = time.monotonic()
    check()


def silence_s() -> float:
    """Return the seconds since the work last went on."""
    return time.monotonic() - _Course.life_s


def pause(seconds: float) -> None:
    """Wait; a safe point all the time.

    Raises:
        Interrupted: a signal came.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, POLL_S))
    check()
