"""An engine that is opened when it is first needed, and goes on with less where memory runs out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

from pipeline.engine import Engine
from schemas.errors import CapacityError

T = TypeVar("T")

FULL = ("out of memory", "can't allocate memory")
"""What torch says when the memory of a GPU or of the machine is full."""


class LazyEngine:
    """An engine that is opened at its first use and closed at the end of a block."""

    def __init__(
        self, opener: Callable[[], Engine], note: Callable[[str], None] = lambda text: None
    ) -> None:
        """Remember how to open the engine.

        Args:
            opener: loads the model.
            note: told when memory ran out and less is tried.
        """
        self._opener, self._note = opener, note
        self._engine: Engine | None = None
        self.start_s = 0.0

    def __enter__(self) -> Self:
        """Begin the block; nothing is loaded yet."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine if it was opened."""
        if self._engine is not None:
            self._engine.close()

    def get(self) -> Engine:
        """Return the engine, opened once; `start_s` is the time that took."""
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
