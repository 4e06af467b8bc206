"""Numbers below 2^24 as bytes: one head each, and further bytes where a number is not small. Pure.

A head below 192 is the number itself. Heads 192 to 251 stand for 256 numbers each and have a low
byte; heads 252 to 254 for 65,536 each, with a low and a middle byte; 255 has all three. A row's
further bytes stand together: its low bytes, then its middle ones, then its high ones.
Shapes: N numbers of all rows joined, R rows.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError

LIMIT = 1 << 24

SMALL, WIDE, WIDEST = 192, 252, 255

WIDE_START = SMALL + 256 * (WIDE - SMALL)

Bytes = NDArray[np.uint8]

Counts = NDArray[np.int64]

_WIDE_STARTS = np.array(
    [*(WIDE_START + 65536 * np.arange(WIDEST - WIDE)), WIDE_START], dtype=np.int32
)
"""First number of each head from `WIDE` on."""


class Coded(NamedTuple):
    """Some numbers as bytes, rows joined."""

    heads: Bytes
    """[N]."""
    more: Bytes
    """Further bytes."""
    more_counts: Counts
    """[R] further bytes of each row."""


def encode(numbers: NDArray[Any], counts: Counts) -> Coded:
    """Return numbers as bytes.

    Args:
        numbers: int32 [N], from 0 to below 2^24.
        counts: int64 [R] numbers of each row, summing to N.

    Raises:
        DataError: a number is negative or too large.
    """
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < LIMIT):
        raise DataError(f"a number to be packed is outside [0, {LIMIT})")
    heads = numbers.astype(np.uint8)
    long = np.flatnonzero(numbers >= SMALL)
    over = numbers[long] - SMALL
    lows = over.astype(np.uint8)
    heads[long] = SMALL + np.minimum(over >> 8, WIDE - SMALL)
    wide = long[over >= WIDE_START - SMALL]
    over = numbers[wide] - WIDE_START
    heads[wide] = np.minimum(WIDE + (over >> 16), WIDEST)
    widest = over >> 16 >= WIDEST - WIDE
    ends = np.cumsum(counts)
    num_mid = rows_of(wide, ends)
    num_high = rows_of(wide[widest], ends)
    upper = interleaved(
        (over >> 8).astype(np.uint8),
        (over[widest] >> 16).astype(np.uint8),
        num_mid,
        num_high,
    )
    num_low, num_upper = rows_of(long, ends), num_mid + num_high
    more = interleaved(lows, upper, num_low, num_upper)
    return Coded(heads, more, num_low + num_upper)


def decode(coded: Coded, counts: Counts, *, where: str) -> NDArray[np.int32]:
    """Return the int32 numbers [N] of their bytes.

    Raises:
        DataError: there are not as many bytes as the heads say.
    """
    heads, more, more_counts = coded
    ends = np.cumsum(counts)
    long = np.flatnonzero(heads >= SMALL)
    long_heads = heads[long]
    wide = np.flatnonzero(long_heads >= WIDE)  # among the long ones, as `widest`
    widest = wide[long_heads[wide] == WIDEST]
    num_low, num_mid, num_high = (rows_of(p, ends) for p in (long, long[wide], long[widest]))
    if not np.array_equal(num_low + num_mid + num_high, more_counts):
        raise DataError(f"{where}: packed numbers lack bytes or have too many")
    low, upper = separated(more, num_low, num_mid + num_high)
    mid, high = separated(upper, num_mid, num_high)
    found = long_heads.astype(np.int32)
    found <<= 8
    found += SMALL - 256 * SMALL
    found[wide] = _WIDE_STARTS[long_heads[wide] - WIDE] + (mid.astype(np.int32) << 8)
    found[widest] += high.astype(np.int32) << 16
    found += low
    numbers = heads.astype(np.int32)
    numbers[long] = found
    return numbers


def rows_of(places: NDArray[np.int64], ends: Counts) -> Counts:
    """Return how many of some ascending places lie in each row, int64 [R]."""
    return np.diff(np.searchsorted(places, ends), prepend=0)


def interleaved(first: Bytes, second: Bytes, num_first: Counts, num_second: Counts) -> Bytes:
    """Return two parts joined row by row: of each row the first, then the second."""
    if not len(second):
        return first
    chosen = _is_first(num_first, num_second)
    joined = np.empty(len(chosen), dtype=np.uint8)
    joined[chosen], joined[~chosen] = first, second
    return joined


def separated(joined: Bytes, num_first: Counts, num_second: Counts) -> tuple[Bytes, Bytes]:
    """Return the two parts of what `interleaved` has joined."""
    if not num_second.any():
        return joined, joined[:0]
    chosen = _is_first(num_first, num_second)
    return joined[chosen], joined[~chosen]


def _is_first(num_first: Counts, num_second: Counts) -> NDArray[np.bool_]:
    pairs = np.stack([num_first, num_second], axis=1).reshape(-1)
    return np.repeat(np.tile([True, False], len(num_first)), pairs)
