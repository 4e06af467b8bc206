"""Numbers below 16 as half bytes, rows beginning at whole bytes. Pure.

The first of a pair is the lower half; a row of odd length ends with an empty upper half.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

Counts = NDArray[np.int64]


def joined(numbers: NDArray[Any], counts: Counts) -> tuple[Bytes, Counts]:
    """Return numbers as pairs, rows joined, and the bytes of each row.

    Args:
        numbers: from 0 to 15, rows joined.
        counts: int64, numbers of each row.
    """
    halves = numbers.astype(np.uint8)
    odd = counts % 2 == 1
    if odd.any():
        halves = np.insert(halves, np.cumsum(counts)[odd], 0)
    pairs = halves.view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8), (counts + 1) // 2


def split(pairs: Bytes, counts: Counts) -> Bytes:
    """Return the numbers of pairs, uint8, rows joined; `counts` are the numbers of each row."""
    wide = pairs.astype("<u2")
    halves: Bytes = ((wide | wide << 4) & 0x0F0F).view(np.uint8)
    odd = counts % 2 == 1
    if not odd.any():
        return halves
    padded = np.cumsum(counts + odd)
    kept: Bytes = np.delete(halves, padded[odd] - 1)
    return kept
