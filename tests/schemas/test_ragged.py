"""Rows of unequal length that are joined, against loops over lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.ragged import offsets_within, row_sums, stretches, token_index

LENGTHS = st.lists(st.integers(0, 6), max_size=8)


def counts(lengths: list[int]) -> np.ndarray:
    return np.array(lengths, np.int64)


@given(LENGTHS)
def test_offsets_count_from_0_in_every_row(lengths: list[int]) -> None:
    found = offsets_within(counts(lengths))
    assert found.tolist() == [place for length in lengths for place in range(length)]


@given(LENGTHS.filter(bool), st.data())
def test_the_values_of_some_rows_are_found_in_their_order(
    lengths: list[int], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
    values = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    found = token_index(counts(lengths), counts(rows))
    expected = [(row, place) for row in rows for place in range(lengths[row])]
    assert [values[i] for i in found] == expected


@given(st.lists(st.lists(st.integers(-9, 9), max_size=5), max_size=8))
def test_rows_are_summed_each_for_itself(rows: list[list[int]]) -> None:
    values = np.array([value for row in rows for value in row], np.int64)
    found = row_sums(values, counts([len(row) for row in rows]))
    assert found.tolist() == [sum(row) for row in rows]


@given(LENGTHS, st.integers(1, 12))
def test_stretches_are_whole_rows_and_as_long_as_they_may_be(lengths: list[int], most: int) -> None:
    ends = stretches(counts(lengths), most)
    parts = [lengths[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert [length for part in parts for length in part] == lengths
    assert all(parts)
    for part in parts:
        assert sum(part) <= most or sum(length > 0 for length in part) == 1
    for part, following in zip(parts, parts[1:], strict=False):
        assert sum(part) + following[0] > most
