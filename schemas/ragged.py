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


def row_sums(values: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of each row's values, int64 [rows]; `lengths` are the values of each row."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return np.asarray(sums[ends] - sums[ends - lengths], dtype=np.int64)


def padded(
    values: NDArray[Any], counts: NDArray[Any], *, fill: float, width: int | None = None
) -> NDArray[Any]:
    """Return as many values for each token as for every other one, [tokens, width].

    Args:
        values: of all tokens, joined.
        counts: values of each token.
        fill: stands where a token has fewer.
        width: most values of a token; default the largest count.
    """
    width = int(counts.max(initial=0)) if width is None else width
    kept = np.arange(width) < counts[:, None]
    rows = np.full(kept.shape, fill, dtype=values.dtype)
    rows[kept] = values
    return rows


def stretches(lengths: NDArray[Any], most: int) -> list[int]:
    """Return the row number after each stretch of whole rows.

    Args:
        lengths: values of each row.
        most: values of a stretch, which has one row at least.
    """
    ends, held = list[int](), 0
    for row, count in enumerate(lengths.tolist()):
        if held and held + count > most:
            ends.append(row)
            held = 0
        held += count
    return [*ends, len(lengths)] if len(lengths) else []
