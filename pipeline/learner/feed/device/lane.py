"""Work on a device beside training: what is made ahead has a stream of its own there.

Promises: neither waits for the other; memory of what was made is not given away while training
still reads it. A CPU has no streams.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Lane:
    """A stream of a device for what one other thread makes."""

    def __init__(self, device: str) -> None:
        """Make the stream, where the device has any."""
        self._stream: torch.cuda.Stream | None = None
        if device.startswith("cuda"):
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's gap

    def make(self, build: Callable[[], T]) -> T:
        """Return what is built, once all of it is on the device."""
        if self._stream is None:
            return build()
        with torch.cuda.stream(self._stream):
            made = build()
            self._stream.synchronize()
        return made

    def claim(self, made: T) -> T:
        """Return what was built here, as the calling thread's, which goes on to work with it."""
        if self._stream is not None:
            for tensor in tensors_of(made):
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return made


def tensors_of(parts: Any) -> Iterator[Tensor]:
    """Yield all tensors of tuples and dataclasses, those of their parts too."""
    if isinstance(parts, Tensor):
        yield parts
    elif isinstance(parts, tuple):
        for part in parts:
            yield from tensors_of(part)
    elif is_dataclass(parts):
        for field in fields(parts):
            yield from tensors_of(getattr(parts, field.name))
