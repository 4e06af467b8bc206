"""Memory of models: what it means that it is full, and how it is given back at once.

A full collection of a process that has imported torch and transformers takes a third of a second.
Promises: what a model takes is free when `free_weights` returns, whoever still holds the model.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

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
            f"memory ran out while {doing} ({first}). Lower batch_tokens or logit_chunk_mb of "
            "the stage's section"
        ) from error


def free_weights(model: Any) -> None:
    """Give back the memory of a model's weights and buffers; it cannot be used afterwards."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)
    empty_device()


def empty_device() -> None:
    """Let other processes have what torch keeps of a GPU's memory for itself."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def leave_imports() -> None:
    """Keep what has been imported by now out of every later collection of this process."""
    gc.freeze()
