"""List and binary columns of Arrow tables as numpy arrays, and back. Pure."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import DataError

Ids = NDArray[np.int32]

LARGEST_OFFSET = (1 << 31) - 1
"""Most values of a list column whose offsets are int32."""

Floats = NDArray[np.float32]


def list_lengths(table: pa.Table, name: str) -> Any:
    """Return the number of values in each row of a list column, int64 [rows]."""
    lengths = pc.list_value_length(table.column(name)).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, dtype=np.int64)


def check_lengths(table: pa.Table, name: str, expected: Any, *, where: str) -> None:
    """Make sure that each row of a list column has a number of values.

    Raises:
        DataError: one has another.
    """
    found = list_lengths(table, name)
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {row} has {found[row]} values in {name!r}, expected {expected[row]}"
        )


def flat_values(table: pa.Table, name: str) -> Any:
    """Return all values of a list column, rows joined, as one numpy array (maybe read-only)."""
    return pc.list_flatten(_joined(table, name)).to_numpy(zero_copy_only=False)


def _joined(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array, copied only where it is in parts."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def list_array(values: Any, lengths: Any, kind: pa.DataType) -> pa.Array:
    """Return a list column from joined values and the number of values in each row.

    Args:
        values: numpy array, cast to the list's value type.
        lengths: int64 [rows], summing to `len(values)`.
        kind: list or large-list type.
    """
    large = pa.types.is_large_list(kind)
    if not large and len(values) > LARGEST_OFFSET:
        raise DataError(f"a column has {len(values)} values, more than {LARGEST_OFFSET}")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64 if large else np.int32)
    make = pa.LargeListArray if large else pa.ListArray
    flat = pa.array(np.ascontiguousarray(values), type=kind.value_type)
    return make.from_arrays(pa.array(offsets), flat, type=kind)


def list_rows(table: pa.Table, name: str) -> list[Any]:
    """Return a list column as one numpy array per row (views, maybe read-only)."""
    values, ends = flat_values(table, name), np.cumsum(list_lengths(table, name)).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def binary_array(values: Any, lengths: Any) -> pa.Array:
    """Return a column of bytes from joined bytes and the number of bytes in each row.

    Args:
        values: uint8 numpy array.
        lengths: int64 [rows], summing to `len(values)`.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)


def binary_values(table: pa.Table, name: str) -> tuple[Any, Any]:
    """Return all bytes of a binary column, uint8, rows joined, and the bytes of each row, int64."""
    column = _joined(table, name)
    lengths = pc.binary_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    _, offsets, data = column.buffers()
    if data is None:
        return np.empty(0, dtype=np.uint8), lengths
    start = int(np.frombuffer(offsets, np.int64)[column.offset])
    values = np.frombuffer(data, np.uint8)[start : start + int(lengths.sum())]
    return values, lengths
