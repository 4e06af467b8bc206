"""Batches of unequal rows against loops over rows and tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.padding import length_batches, padded, response_positions
from schemas.ragged import offsets_within, token_index

LENGTHS = st.lists(st.integers(1, 30), max_size=25)
SOME = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(LENGTHS, st.integers(1, 60))
def test_batches_hold_each_row_once_longest_first_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), budget)
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * widest <= budget


@given(LENGTHS, st.integers(1, 60))
def test_a_batch_is_closed_only_when_a_further_row_would_not_fit(
    lengths: list[int], budget: int
) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@given(LENGTHS, st.integers(1, 60), st.integers(1, 30))
def test_rows_on_two_sides_of_a_border_share_no_batch(
    lengths: list[int], budget: int, border: int
) -> None:
    rows = np.array(lengths, dtype=np.int64)
    batches = length_batches(rows, budget, kinds=rows > border)
    flat = [row for batch in batches for row in batch.tolist()]
    assert flat == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in batches:
        assert len({lengths[i] > border for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(SOME, st.booleans())
def test_padding_keeps_each_row_on_its_side(lengths: list[int], left: bool) -> None:
    rows = [np.arange(1, n + 1, dtype=np.int32) * 7 for n in lengths]
    ids_BT, mask_BT = padded(rows, "cpu", left=left)
    width = max(lengths)
    assert ids_BT.dtype == mask_BT.dtype == torch.int64
    assert ids_BT.shape == mask_BT.shape == (len(lengths), width)
    for ids, mask, row in zip(ids_BT.tolist(), mask_BT.tolist(), rows, strict=True):
        pad = [0] * (width - len(row))
        assert ids == (pad + row.tolist() if left else row.tolist() + pad)
        assert mask == (pad + [1] * len(row) if left else [1] * len(row) + pad)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=7))
def test_the_state_before_each_response_token_predicts_it(pairs: list[tuple[int, int]]) -> None:
    prompts, responses = (np.array(column) for column in zip(*pairs, strict=True))
    row, column = response_positions(prompts, responses).tolist()
    expected = [(i, p - 1 + t) for i, (p, r) in enumerate(pairs) for t in range(r)]
    assert list(zip(row, column, strict=True)) == expected


@given(st.lists(st.integers(0, 6), max_size=8))
def test_offsets_count_from_nought_in_each_row(lengths: list[int]) -> None:
    expected = [t for n in lengths for t in range(n)]
    assert offsets_within(np.array(lengths, dtype=np.int64)).tolist() == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.data())
def test_token_index_takes_the_values_of_rows_in_any_order(
    lengths: list[int], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    joined = [(row, t) for row, n in enumerate(lengths) for t in range(n)]
    index = token_index(np.array(lengths), np.array(rows, dtype=np.int64))
    assert index.dtype == np.int64
    assert [joined[i] for i in index] == [(row, t) for row in rows for t in range(lengths[row])]
