"""Tensors on their way to a device, in 16 bits where these hold every value exactly. Pure.

Promises: what arrives is what left, bit by bit. Most of what a teacher says is stored in 16 bits
(`pipeline/shards`), and ids of most vocabularies fit in as many.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Unpack = Callable[[Tensor], Tensor]

NONE = (1 << 16) - 1
"""What stands for -1, an id that is none, among ids of 16 bits."""


def travelled(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor on a device; the CPU, where it is, takes no way."""
    if device == "cpu":
        return tensor
    packed, unpack = narrowed(tensor)
    return unpack(packed.to(device))


def narrowed(tensor: Tensor) -> tuple[Tensor, Unpack]:
    """Return a tensor in the fewest bits that hold it, and what makes it whole again."""
    if tensor.dtype in (torch.int32, torch.int64) and tensor.numel():
        return _whole_numbers(tensor)
    if tensor.dtype == torch.float32:
        return _logprobs(tensor)
    return tensor, _as_it_is


def _whole_numbers(tensor: Tensor) -> tuple[Tensor, Unpack]:
    least, most = (int(bound) for bound in tensor.aminmax())
    if least >= -1 and most < NONE:
        return tensor.to(torch.int16), partial(_unsigned, dtype=tensor.dtype)
    if tensor.dtype == torch.int64 and least >= -(1 << 31) and most < 1 << 31:
        return tensor.to(torch.int32), partial(Tensor.to, dtype=torch.int64)
    return tensor, _as_it_is


def _unsigned(packed: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = packed.to(torch.int32) & NONE
    return torch.where(numbers == NONE, -1, numbers).to(dtype)


def _logprobs(tensor: Tensor) -> tuple[Tensor, Unpack]:
    """Return log-probabilities as a codec stores them, where all of them are of one."""
    for pack, unpack in ((_half, Tensor.float), (_below_2, _from_2)):
        packed = pack(tensor)
        if torch.equal(unpack(packed).view(torch.int32), tensor.view(torch.int32)):
            return packed, unpack
    return tensor, _as_it_is


def _half(tensor: Tensor) -> Tensor:
    return tensor.half()


def _below_2(tensor: Tensor) -> Tensor:
    """Return bfloat16(2 - x), which is what `packed-v1` makes levels of."""
    return (2 - tensor).bfloat16()


def _from_2(packed: Tensor) -> Tensor:
    return 2 - packed.float()


def _as_it_is(packed: Tensor) -> Tensor:
    return packed
