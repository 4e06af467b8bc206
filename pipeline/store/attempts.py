"""One attempt at a request, which ends in time however the store behaves.

A store that sends a byte now and then, and a mount that hangs, keep a call for ever. So it is made
in a thread of its own, which is left behind when its time is over. Promises: time that arriving
bytes or the size of an object account for is given; the time for which this process itself stood
still does not count.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from pipeline.store import interrupts

T = TypeVar("T")

ENTRY_BYTES = 256
"""What one entry of a listing counts for."""

LONGEST_LOOK_S = 1.0
"""Of a longer gap between two looks at the clock, only this counts: the process stood still."""


@dataclass(frozen=True)
class Pace:
    """How slow an attempt may be."""

    silence_s: float = 65.0
    """Seconds without any byte."""
    min_bytes_per_s: float = 16384.0
    """Bytes per second below which it is as good as silent."""


class Attempt:
    """The time that is left to an attempt; used by two threads."""

    def __init__(self, pace: Pace) -> None:
        """Begin with the time that may pass before the first byte."""
        self._rate = pace.min_bytes_per_s
        self._left_s = self._most_s = pace.silence_s
        self._cancel: Callable[[], object] = lambda: None

    def expect(self, num_bytes: int) -> None:
        """Give the time that so many bytes may take of whose way nothing is seen."""
        self._most_s += num_bytes / self._rate
        self._left_s += num_bytes / self._rate

    def arrived(self, num_bytes: int) -> None:
        """Give time for bytes that came or went."""
        self._left_s = min(self._most_s, self._left_s + num_bytes / self._rate)

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """Say how to end what is under way once the time is over."""
        self._cancel = cancel

    def cancel(self) -> None:
        """End what is under way."""
        self._cancel()

    def pass_time(self, seconds: float) -> bool:
        """Take time away; return whether some is left."""
        self._left_s -= min(seconds, LONGEST_LOOK_S)
        return self._left_s > 0


class _Call:
    """A call on its way through another thread."""

    def __init__(self, action: Callable[[], Any], attempt: Attempt) -> None:
        self._action, self.attempt = action, attempt
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call, in the other thread."""
        try:
            self.result = self._action()
        except BaseException as error:
            self.error = error


IDLE: deque[SimpleQueue[_Call]] = deque()
"""Threads that wait for a call, the last one first."""

os.register_at_fork(after_in_child=IDLE.clear)

_HERE = threading.local()


def current() -> Attempt:
    """Return the attempt that this thread makes; one without consequences where it makes none."""
    found = getattr(_HERE, "attempt", None)
    return found if isinstance(found, Attempt) else Attempt(Pace())


def bounded(action: Callable[[], T], pace: Pace) -> T:
    """Return what an action returns, or give it up when its time is over.

    Raises:
        TimeoutError: it is over.
        Interrupted: a signal came meanwhile.
    """
    call = _Call(action, Attempt(pace))
    _idle_thread().put(call)
    looked = time.monotonic()
    while not call.done.acquire(timeout=interrupts.POLL_S):
        now = time.monotonic()
        if not call.attempt.pass_time(now - looked):
            call.attempt.cancel()
            raise TimeoutError(
                f"less than {pace.min_bytes_per_s:.0f} bytes per second came in "
                f"{pace.silence_s:.0f} s (storage.read_timeout_s, storage.min_bytes_per_s)"
            )
        looked = now
        try:
            interrupts.check()
        except interrupts.Interrupted:
            call.attempt.cancel()
            raise
    error, call.error = call.error, None  # or its traceback would hold the call, and that the error
    if error is not None:
        behind = error.__context__
        try:
            raise error
        finally:
            error.__context__ = behind  # not what the caller is handling, which it knows nothing of
            del error
    result: T = call.result
    return result


def _idle_thread() -> SimpleQueue[_Call]:
    try:
        return IDLE.pop()
    except IndexError:
        calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=_serve, args=(calls,), daemon=True, name="opd-store").start()
        return calls


def _serve(calls: SimpleQueue[_Call]) -> None:
    """Make calls for ever; an abandoned one too is made to its end."""
    while True:
        call = calls.get()
        _HERE.attempt = call.attempt
        call.run()
        IDLE.append(calls)
        call.done.release()
        del call
