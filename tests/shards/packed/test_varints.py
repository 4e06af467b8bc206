"""Whole numbers of few bytes, against an encoder that does one row and one number at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.packed.varints import LIMIT, Coded, decode, encode
from schemas.errors import DataError

EDGES = [0, 191, 192, 447, 448, 15_551, 15_552, 81_087, 81_088, 212_159, 212_160, LIMIT - 1]
NUMBER = st.integers(0, LIMIT - 1) | st.integers(0, 300) | st.sampled_from(EDGES)
ROWS = st.lists(st.lists(NUMBER, max_size=9), max_size=5)


def bytes_of(number: int) -> list[int]:
    """Return a number's head, then its low, middle and high byte as far as it has them."""
    if number < 192:
        return [number]
    if number < 192 + 60 * 256:
        over = number - 192
        return [192 + over // 256, over % 256]
    over = number - (192 + 60 * 256)
    low, middle, high = (number - 192) % 256, over // 256 % 256, over // 65536
    return [252 + high, low, middle] if high < 3 else [255, low, middle, high]


def reference(rows: list[list[int]]) -> Coded:
    """Return rows one by one: all heads, then all low bytes of a row, its middle ones, its high."""
    heads, more, counts = list[int](), list[int](), list[int]()
    for row in rows:
        coded = [bytes_of(number) for number in row]
        heads += [one[0] for one in coded]
        further = [one[place] for place in (1, 2, 3) for one in coded if len(one) > place]
        more += further
        counts.append(len(further))
    return Coded(np.array(heads, np.uint8), np.array(more, np.uint8), np.array(counts, np.int64))


def joined(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([number for row in rows for number in row], np.int32)
    return numbers, np.array([len(row) for row in rows], np.int64)


@given(ROWS)
def test_numbers_have_the_bytes_of_the_rule(rows: list[list[int]]) -> None:
    found, expected = encode(*joined(rows)), reference(rows)
    for name in Coded._fields:
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name


@given(st.lists(st.lists(st.integers(0, LIMIT - 1) | st.integers(0, 300), max_size=9), max_size=5))
def test_numbers_come_back(rows: list[list[int]]) -> None:
    numbers, counts = joined(rows)
    coded = encode(numbers, counts)
    assert decode(coded, counts, where="x").tolist() == numbers.tolist()
    assert coded.more_counts.sum() == len(coded.more)


@pytest.mark.parametrize("number", [-1, LIMIT])
def test_numbers_beyond_the_code_are_refused(number: int) -> None:
    with pytest.raises(DataError, match="outside"):
        encode(np.array([number], np.int32), np.array([1]))


@given(ROWS, st.data())
def test_another_number_of_bytes_than_the_heads_say_is_refused(
    rows: list[list[int]], data: st.DataObject
) -> None:
    _, counts = joined([[300], *rows])
    coded = encode(*joined([[300], *rows]))
    row = data.draw(st.integers(0, len(rows)))
    change = data.draw(st.sampled_from([1] if not coded.more_counts[row] else [1, -1]))
    wrong = coded.more_counts.copy()
    wrong[row] += change
    end = int(coded.more_counts[: row + 1].sum())
    more = np.insert(coded.more, end, 7) if change > 0 else np.delete(coded.more, end - 1)
    with pytest.raises(DataError, match="^store/x: packed numbers"):
        decode(Coded(coded.heads, more, wrong), counts, where="store/x")
