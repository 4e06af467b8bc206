"""An engine that is opened when it is first needed, and goes on with less where memory runs out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

from pipeline.engine import Engine
from schemas.errors import CapacityError

T = TypeVar("T")

FULL = ("out of memory", "can't allocate memory")
"""What torch says when the memory of a GPU or of the machine is full."""


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
        note: Callable[[str], None] = lambda text: None,
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


@contextmanager
def capacity(doing: str) -> Iterator[None]:
    """Turn torch's errors of a full memory inside a block into a CapacityError.

    Args:
        doing: what the block does, such as `scoring`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        words = str(error)
        if isinstance(error, RuntimeError) and not any(word in words for word in FULL):
            raise
        first = words.strip().splitlines()[0] if words.strip() else type(error).__name__
        raise CapacityError(
            f"memory ran out while {doing} ({first}). Lower batch_tokens or logit_chunk_tokens of "
            "the stage's section"
        ) from error
