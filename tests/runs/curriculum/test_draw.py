"""Prompts drawn by difficulty: how often each is expected, and what one round draws."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.curriculum.draw import draw_by_difficulty, expected_counts, hardest

KNOWN = st.lists(st.none() | st.floats(-50, 50), min_size=1, max_size=30)
SHARES = st.floats(0.0, 1.0)


def difficulties(values: list[float | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values])


@given(KNOWN, st.integers(1, 70), SHARES, st.floats(0.01, 1.0))
def test_every_prompt_keeps_its_floor_and_none_is_needed_more_than_all_are(
    values: list[float | None], per_round: int, hardness: float, floor: float
) -> None:
    counts = expected_counts(
        difficulties(values), per_round=per_round, hardness=hardness, floor=floor
    )
    assert counts.sum() == pytest.approx(per_round)
    assert counts.min() >= floor * per_round / len(values) - 1e-9
    assert counts.max() <= -(-per_round // len(values)) + 1e-9


@given(KNOWN, st.integers(1, 9), SHARES)
def test_the_harder_a_prompt_the_likelier_where_hardness_says_so(
    values: list[float | None], per_round: int, floor: float
) -> None:
    given_ = difficulties(values)
    order = np.argsort(given_[~np.isnan(given_)], kind="stable")
    for hardness in (0.0, 0.5, 1.0):
        counts = expected_counts(
            given_, per_round=per_round, hardness=hardness, floor=max(floor, 0.01)
        )
        steps = np.diff(counts[~np.isnan(given_)][order]) * (2 * hardness - 1)
        assert (steps >= -1e-9).all()
        if hardness == 0.5:
            np.testing.assert_allclose(counts, per_round / len(values))


@given(KNOWN, st.integers(1, 70), SHARES, st.integers(0, 99))
def test_a_round_draws_each_prompt_about_as_often_as_expected_and_the_same_when_asked_again(
    values: list[float | None], per_round: int, hardness: float, round_index: int
) -> None:
    given_ = difficulties(values)
    expected = expected_counts(given_, per_round=per_round, hardness=hardness, floor=0.1)

    def drawn(number: int) -> list[tuple[int, int]]:
        rows, copies = draw_by_difficulty(
            given_,
            per_round=per_round,
            hardness=hardness,
            floor=0.1,
            round_index=number,
            seed=3,
        )
        assert rows.dtype == copies.dtype == np.int64
        return list(zip(rows.tolist(), copies.tolist(), strict=True))

    found = drawn(round_index)
    assert len(found) == per_round and max(Counter(found).values()) == 1
    counts = np.bincount([row for row, _ in found], minlength=len(values))
    assert (np.abs(counts - expected) < 1 + 1e-6).all()
    for row, copy in found:
        assert 0 <= copy < counts[row]
    assert drawn(round_index) == found


def test_over_many_rounds_prompts_come_as_often_as_expected() -> None:
    given_ = np.array([0.0, 1.0, 2.0, 3.0, np.nan, 4.0])
    expected = expected_counts(given_, per_round=3, hardness=0.9, floor=0.2)
    counts = np.zeros(6)
    for number in range(600):
        rows, _ = draw_by_difficulty(
            given_, per_round=3, hardness=0.9, floor=0.2, round_index=number, seed=1
        )
        counts += np.bincount(rows, minlength=6)
    np.testing.assert_allclose(counts / 600, expected, atol=0.08)


def test_the_hardest_are_a_share_of_the_known_and_equal_ones_go_together() -> None:
    nan = float("nan")
    known = np.array([3.0, nan, 1.0, 4.0, 2.0, nan])
    assert hardest(known, 0.25).tolist() == [False, False, False, True, False, False]
    assert hardest(known, 0.5).tolist() == [True, False, False, True, False, False]
    assert hardest(known, 1.0).tolist() == [True, False, True, True, True, False]
    assert not hardest(np.full(4, nan), 1.0).any()
    rewards = -np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    assert hardest(rewards, 0.2).tolist() == [True, False, True, False, False]
    assert not hardest(rewards, 0.1).any()
