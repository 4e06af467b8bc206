"""An engine that is opened when it is first needed, and goes on with less where memory runs out."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from types import TracebackType
from typing import Self, TypeVar

from pipeline.engines.engine import Engine
from pipeline.engines.start import Note
from schemas.errors import CapacityError

T = TypeVar("T")

Lend = Callable[[Callable[[], Engine]], AbstractContextManager[Engine]]
"""Gives an engine for a block: a new one, which the function opens, or one that was kept."""


def new_engine(open_new: Callable[[], Engine]) -> AbstractContextManager[Engine]:
    """Give a new engine for a block, and close it at the end."""
    return closing(open_new())


class LazyEngine:
    """An engine that is opened at its first use and given back at the end of a block."""

    def __init__(self, opener: Callable[[], Engine], note: Note, lend: Lend = new_engine) -> None:
        """Remember how to open the engine.

        Args:
            opener: loads the model.
            note: told when memory ran out and less is tried.
            lend: gives the engine; by default always a new one.
        """
        self._opener, self._note, self._lend = opener, note, lend
        self._engine: Engine | None = None
        self._lent = ExitStack()
        self.start_s = 0.0

    def __enter__(self) -> Self:
        """Begin the block; nothing is loaded yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the engine back if it was opened."""
        self._lent.__exit__(kind, error, trace)

    def get(self) -> Engine:
        """Return the engine, opened once; `start_s` is the time that took, 0 for one kept."""
        if self._engine is None:
            self._engine = self._lent.enter_context(self._lend(self._open))
        return self._engine

    def call(self, work: Callable[[Engine], T]) -> T:
        """Return what a function makes of the engine; repeat it with less where memory runs out.

        Raises:
            CapacityError: there is no less.
        """
        while True:
            engine = self.get()
            try:
                return work(engine)
            except CapacityError as error:
                if not engine.shrink():
                    raise
                self._note(f"{error}; trying again with half the tokens in a forward pass")

    def _open(self) -> Engine:
        begin = time.monotonic()
        engine = self._opener()
        self.start_s = time.monotonic() - begin
        return engine
