"""Half bytes against loops over rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.packed.nibbles import joined, split


@given(st.lists(st.lists(st.integers(0, 15), max_size=7), max_size=6))
def test_two_numbers_share_a_byte_and_each_row_begins_a_new_one(rows: list[list[int]]) -> None:
    expected = []
    for row in rows:
        padded = [*row, *([0] if len(row) % 2 else [])]
        expected.append([a + 16 * b for a, b in zip(padded[::2], padded[1::2], strict=True)])
    numbers = np.array([number for row in rows for number in row], np.int32)
    counts = np.array([len(row) for row in rows], np.int64)
    pairs, lengths = joined(numbers, counts)
    assert pairs.tolist() == [pair for row in expected for pair in row]
    assert lengths.tolist() == [len(row) for row in expected]
    assert split(pairs, counts).tolist() == numbers.tolist()
