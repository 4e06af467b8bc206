"""Positions in rows of unequal length whose values are joined in one array. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def offsets_within(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return int64 [sum of lengths]: the position of each value inside its row."""
    starts = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(lengths.sum()) - np.repeat(starts, lengths), dtype=np.int64)


def token_index(lengths: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return where, in joined values, the values of some rows stand, in the order of `rows`."""
    starts = np.cumsum(lengths) - lengths
    index = np.repeat(starts[rows], lengths[rows]) + offsets_within(lengths[rows])
    return np.asarray(index, dtype=np.int64)
