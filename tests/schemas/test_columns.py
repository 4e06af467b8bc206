"""List and binary columns against Python's own lists: in one part, in several, and cut."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columns import (
    binary_array,
    binary_values,
    flat_values,
    list_array,
    list_lengths,
    list_rows,
)

ROWS = st.lists(st.lists(st.integers(0, 250), max_size=5), max_size=8)
KINDS = [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.float32())]


def cut(array: pa.Array, parts: list[int]) -> pa.Table:
    """Return a table of one column in several parts, without its first row and its last."""
    ends = sorted(min(part, len(array)) for part in parts)
    chunks = [array[a:b] for a, b in zip([0, *ends], [*ends, len(array)], strict=True)]
    return pa.table({"x": pa.chunked_array(chunks, array.type)}).slice(1, max(0, len(array) - 2))


def joined(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v for row in rows for v in row]), np.array([len(row) for row in rows], int)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(rows=ROWS, parts=st.lists(st.integers(0, 8), max_size=3))
def test_lists_come_back_from_a_column(
    kind: pa.DataType, rows: list[list[int]], parts: list[int]
) -> None:
    array = list_array(*joined(rows), kind)
    assert (array.type, array.to_pylist()) == (kind, rows)
    table, kept = cut(array, parts), rows[1:-1]
    assert list_lengths(table, "x").tolist() == [len(row) for row in kept]
    assert flat_values(table, "x").tolist() == [value for row in kept for value in row]
    assert [row.tolist() for row in list_rows(table, "x")] == kept


@given(rows=ROWS, parts=st.lists(st.integers(0, 8), max_size=3))
def test_bytes_come_back_from_a_column(rows: list[list[int]], parts: list[int]) -> None:
    values, lengths = joined(rows)
    array = binary_array(values.astype(np.uint8), lengths)
    array.validate(full=True)
    assert array.to_pylist() == [bytes(row) for row in rows]
    found, counts = binary_values(cut(array, parts), "x")
    kept = rows[1:-1]
    assert found.tolist() == [value for row in kept for value in row]
    assert counts.tolist() == [len(row) for row in kept]


def test_lengths_that_do_not_fit_the_values_make_no_column() -> None:
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        list_array(np.arange(3), np.array([2, 2]), pa.list_(pa.int32())).validate(full=True)
