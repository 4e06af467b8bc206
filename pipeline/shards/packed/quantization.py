"""Log-probabilities as whole numbers: bit patterns of a rounded bfloat16, counted from that of 2.

Level of x is the bit pattern of bfloat16(2 - x) minus that of bfloat16(2.0): fine near 0, coarser
where a probability is small, exact at -inf. Levels grow as log-probabilities fall. Pure.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

OFFSET = np.float32(2.0)

FINE, COARSE = 16, 17
"""Bits of a float32 that a level drops: 7 bits of mantissa stay, or 6."""


def levels(logprobs: NDArray[Any], *, drop: int) -> NDArray[np.int32]:
    """Return the nearest level of each log-probability, int32; a slight excess over 0 is level 0.

    Args:
        logprobs: float32, at most about 1e-3; -inf is a level of its own.
        drop: `FINE` or `COARSE`. Levels of x are 2^(drop - 23) · (2 - x) apart at most, and a
            value is off by half of that.
    """
    bits: NDArray[np.int32] = np.subtract(OFFSET, logprobs, dtype=np.float32).view(np.int32)
    bits += (1 << (drop - 1)) - _origin()
    bits >>= drop
    np.maximum(bits, 0, out=bits)
    return bits


def values(found: NDArray[Any], *, drop: int) -> NDArray[np.float32]:
    """Return the float32 log-probability of each level."""
    bits: NDArray[np.int32] = np.left_shift(found, drop, dtype=np.int32)
    bits += _origin()
    logprobs = bits.view(np.float32)
    return np.subtract(OFFSET, logprobs, out=logprobs)


def num_levels(drop: int) -> int:
    """Return how many levels there are; the last one is that of -inf."""
    infinite = int(np.float32(np.inf).view(np.int32))
    return ((infinite - _origin()) >> drop) + 1


def _origin() -> int:
    return int(OFFSET.view(np.int32))
