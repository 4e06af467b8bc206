"""Rows dealt to processes: all of them busy, little of it padding, no micro-batch in vain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.feed.balance import deal, deal_packed, row_work
from pipeline.learner.sequences import Rows

MICRO = 16_384


def lognormal(rows: int, *, seed: int = 0) -> Rows:
    drawn = np.random.default_rng(seed).lognormal(6.5, 0.6, rows)
    return np.clip(drawn, 32, 4096).astype(np.int64)


def uniform(rows: int, low: int, high: int) -> Rows:
    return np.random.default_rng(0).integers(low, high, rows)


def path(tokens: Rows, dealt: list[list[Rows]]) -> float:
    """Return how long processes that meet at every micro-batch take, over a perfect split."""
    work = row_work(tokens)
    costs = [[len(rows) * max(work[rows], default=0) for rows in micro] for micro in dealt]
    perfect = max(work.sum() / len(dealt[0]), work.max())
    return float(sum(max(micro) for micro in costs) / perfect)


def padding(tokens: Rows, dealt: list[list[Rows]]) -> float:
    """Return which share of what is computed is padding."""
    padded = sum(len(rows) * max(tokens[rows], default=0) for micro in dealt for rows in micro)
    return float(1 - tokens.sum() / padded)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    st.integers(1, 20_000),
    st.integers(1, 9),
)
def test_each_row_is_dealt_once_and_no_micro_batch_is_empty(
    lengths: list[int], micro_tokens: int, processes: int
) -> None:
    tokens = np.array(lengths)
    dealt = deal(tokens, micro_tokens=micro_tokens, processes=processes)
    rows = np.concatenate([rows for micro in dealt for rows in micro])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert all(len(micro) == processes and any(map(len, micro)) for micro in dealt)
    again = deal(tokens, micro_tokens=micro_tokens, processes=processes)
    assert [[r.tolist() for r in m] for m in again] == [[r.tolist() for r in m] for m in dealt]


@pytest.mark.parametrize("processes", [1, 2, 8, 64])
@pytest.mark.parametrize("length", [20, 800, 16_384, 40_000])
def test_rows_of_one_length_keep_every_process_busy_all_the_time(
    length: int, processes: int
) -> None:
    tokens = np.full(128, length)
    dealt = deal(tokens, micro_tokens=MICRO, processes=processes)
    assert path(tokens, dealt) == pytest.approx(1.0)
    assert {len(rows) > 0 for micro in dealt for rows in micro} == {True}


@pytest.mark.parametrize(
    ("tokens", "processes", "longest", "most_padding"),
    [
        (lognormal(64), 1, 1.1, 0.05),
        (lognormal(64), 2, 1.1, 0.06),
        (lognormal(64), 8, 1.25, 0.1),
        (lognormal(64), 64, 1.0, 0.05),
        (lognormal(256), 8, 1.11, 0.06),
        (lognormal(512), 64, 1.15, 0.05),
        (uniform(64, 16, 26), 8, 1.1, 0.05),
        (uniform(256, 64, 577), 8, 1.1, 0.06),
        (uniform(512, 64, 577), 64, 1.12, 0.05),
    ],
)
def test_rows_of_many_lengths_are_dealt_nearly_as_well_as_can_be(
    tokens: Rows, processes: int, longest: float, most_padding: float
) -> None:
    dealt = deal(tokens, micro_tokens=MICRO, processes=processes)
    assert path(tokens, dealt) <= longest + 1e-9
    assert padding(tokens, dealt) <= most_padding


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    st.integers(1, 20_000),
    st.integers(1, 9),
)
def test_each_packed_row_is_dealt_once_and_fits(
    lengths: list[int], micro_tokens: int, processes: int
) -> None:
    tokens = np.array(lengths)
    dealt = deal_packed(tokens, micro_tokens=micro_tokens, processes=processes)
    batches = [rows for micro in dealt for rows in micro]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(micro) == processes and any(map(len, micro)) for micro in dealt)
    assert all(tokens[rows].sum() <= micro_tokens for rows in batches if len(rows) > 1)


@pytest.mark.parametrize(
    ("tokens", "processes", "longest", "waiting"),
    [
        (lognormal(64), 1, 1.0, 1.0),
        (lognormal(64), 8, 1.05, 1.05),
        (lognormal(512), 64, 1.03, 1.03),
        (4 * lognormal(256), 8, 1.01, 1.15),
        (4 * lognormal(512), 64, 1.03, 1.5),
    ],
)
def test_packed_rows_keep_every_process_busy(
    tokens: Rows, processes: int, longest: float, waiting: float
) -> None:
    work = row_work(tokens)
    dealt = deal_packed(tokens, micro_tokens=MICRO, processes=processes)
    costs = np.array([[work[rows].sum() for rows in micro] for micro in dealt])
    perfect = max(work.sum() / processes, work.max())
    assert costs.sum(axis=0).max() <= longest * perfect + 1e-9
    assert costs.max(axis=1).sum() <= waiting * perfect + 1e-9, "where they meet at each one"


def test_short_rows_make_one_micro_batch_and_many_long_ones_as_many_as_memory_asks_for() -> None:
    assert len(deal(uniform(64, 16, 26), micro_tokens=MICRO, processes=8)) == 1
    tokens = np.full(64, 800)
    assert len(deal(tokens, micro_tokens=MICRO, processes=1)) == 4
    assert len(deal(tokens, micro_tokens=800, processes=8)) == 8


def test_no_process_gets_the_longest_rows_of_every_micro_batch() -> None:
    tokens = np.sort(lognormal(256))[::-1].copy()
    dealt = deal(tokens, micro_tokens=4096, processes=4)
    loads = [sum(tokens[micro[process]].sum() for micro in dealt) for process in range(4)]
    assert len(dealt) > 4
    assert max(loads) < 1.05 * min(loads)
