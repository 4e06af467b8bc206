"""What it means that memory is full: torch's many errors become one."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import CapacityError

FULL = ("out of memory", "can't allocate memory")
"""What torch says when the memory of a GPU or of the machine is full."""


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
