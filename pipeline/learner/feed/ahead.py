"""What the training thread needs next, made ahead of it by another thread.

Promises: at most `DEPTH` wait to be taken; an error of the thread is raised where its turn comes,
and not before; the thread ends with its block, and a signal ends both.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, Self, TypeVar

from pipeline.store import interrupts

S = TypeVar("S")
T = TypeVar("T")

DEPTH = 4
"""Things that are ready and wait to be taken."""


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Ahead(Generic[T]):
    """Things made one after the other, for the length of a block."""

    def __init__(self, make: Callable[[S], T], order: Iterable[S]) -> None:
        """Begin nothing yet.

        Args:
            make: makes one, in the thread.
            order: what each is made of.
        """
        self.waited_s = 0.0
        """Seconds for which whoever takes them has waited."""
        self._made: Queue[T | _Failure] = Queue(DEPTH)
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(make, order), daemon=True, name="opd-ahead")

    def __enter__(self) -> Self:
        """Begin to make them."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until the thread has ended, which makes no further one."""
        self._stop.set()
        self._thread.join()

    def take(self) -> T:
        """Return the next one.

        Raises:
            BaseException: making it failed so.
        """
        begun = time.perf_counter()
        made = self._next()
        self.waited_s += time.perf_counter() - begun
        if isinstance(made, _Failure):
            interrupts.check()
            raise made.error
        return made

    def _next(self) -> T | _Failure:
        while True:
            try:
                return self._made.get(timeout=interrupts.POLL_S)
            except Empty:
                interrupts.check()

    def _run(self, make: Callable[[S], T], order: Iterable[S]) -> None:
        try:
            for one in order:
                self._put(make(one))
                if self._stop.is_set():
                    return
        except BaseException as error:  # whatever it is, it belongs to whoever takes
            self._put(_Failure(error))

    def _put(self, made: T | _Failure) -> None:
        while not self._stop.is_set():
            try:
                return self._made.put(made, timeout=interrupts.POLL_S)
            except Full:
                continue
