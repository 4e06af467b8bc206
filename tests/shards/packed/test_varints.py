"""Whole numbers of few bytes come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.packed.varints import LIMIT, decode, encode
from schemas.errors import DataError


@given(st.lists(st.lists(st.integers(0, LIMIT - 1) | st.integers(0, 300), max_size=9), max_size=5))
def test_numbers_come_back(rows: list[list[int]]) -> None:
    counts = np.array([len(row) for row in rows], np.int64)
    numbers = np.array([n for row in rows for n in row], np.int32)
    coded = encode(numbers, counts)
    assert decode(coded, counts, where="x").tolist() == numbers.tolist()
    assert coded.more_counts.sum() == len(coded.more)


@pytest.mark.parametrize("number", [-1, LIMIT])
def test_numbers_beyond_the_code_are_refused(number: int) -> None:
    with pytest.raises(DataError, match="outside"):
        encode(np.array([number], np.int32), np.array([1]))
