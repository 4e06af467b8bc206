"""An engine that is opened when it is first needed, and goes on with less where memory runs out."""

import time
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from pipeline.engines.engine import Engine
from schemas.errors import CapacityError

T = TypeVar("T")


class Keeping(Protocol):
    """Who may have a stage's engine before the stage begins, and hold it after its end."""

    def find(self) -> Engine | None:
        """Return an engine that has the stage's model, the stage's from now on; None for none."""

    def keep(self, engine: Engine) -> bool:
        """Return whether an engine is held; otherwise the stage closes it."""


class LazyEngine:
    """An engine that is opened at its first use and closed at the end of a block."""

    def __init__(
        self,
        opener: Callable[[], Engine],
        note: Callable[[str], None],
        keeping: Keeping | None = None,
    ) -> None:
        """Remember how to open the engine.

        Args:
            opener: loads the model.
            note: told when memory ran out and less is tried.
            keeping: who may have the engine already, and keeps it after a block without error.
        """
        self._opener, self._note, self._keeping = opener, note, keeping
        self._engine: Engine | None = None
        self.start_s = 0.0

    def __enter__(self) -> Self:
        """Begin the block; nothing is loaded yet."""
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        """Close the engine if it was opened and nobody keeps it."""
        if self._engine is None:
            return
        kept = kind is None and self._keeping is not None and self._keeping.keep(self._engine)
        if not kept:
            self._engine.close()

    def get(self) -> Engine:
        """Return the engine, opened once; `start_s` is the time that took, 0 for one kept."""
        if self._engine is None and self._keeping is not None:
            self._engine = self._keeping.find()
        if self._engine is None:
            begin = time.monotonic()
            self._engine = self._opener()
            self.start_s = time.monotonic() - begin
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
