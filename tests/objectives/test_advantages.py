"""Advantages, pass rates and gates against plain Python, and what must not change them."""

import math
import statistics
from collections import defaultdict
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.objectives.advantages import (
    EPSILON,
    GroupFigures,
    group_advantages,
    group_figures,
    pass_rate_weights,
    pass_rates,
    reward_gate,
)
from schemas.config.evaluation import AdvantageKind

KINDS: tuple[AdvantageKind, ...] = get_args(AdvantageKind)
NAN = math.nan
REWARDS = st.one_of(st.sampled_from([0.0, 1.0, NAN]), st.floats(-1e6, 1e6, width=32))
ROWS = st.lists(st.tuples(REWARDS, st.integers(-3, 3)), max_size=40)


def columns(rows: list[tuple[float, int]]) -> tuple[Any, Any]:
    rewards = np.array([reward for reward, _ in rows], np.float32)
    return rewards, np.array([group for _, group in rows], np.int64)


def reference(rows: list[tuple[float, int]], kind: AdvantageKind) -> list[float]:
    """Return the advantages row by row, with means that are exact."""
    groups = defaultdict[int, list[float]](list)
    for reward, group in rows:
        if not math.isnan(reward):
            groups[group].append(reward)

    def of(reward: float, group: int) -> float:
        if math.isnan(reward):
            return NAN
        members = groups[group]
        if len(set(members)) == 1:
            return 0.0
        total = sum(map(Fraction, members))
        distance = float(Fraction(reward) - total / len(members))
        if kind == "dr_grpo":
            return distance
        if kind == "grpo":
            return distance / (statistics.stdev(members) + EPSILON)
        return float(Fraction(reward) - (total - Fraction(reward)) / (len(members) - 1))

    return [of(*row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
@given(ROWS)
def test_advantages_are_those_of_plain_python(
    kind: AdvantageKind, rows: list[tuple[float, int]]
) -> None:
    found = group_advantages(*columns(rows), kind=kind)
    assert found.dtype == np.float32
    # a mean near one of its values is known to the rounding of float64 at the group's size
    np.testing.assert_allclose(found, reference(rows, kind), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_numbers_of_groups_change_nothing(
    kind: AdvantageKind, rows: list[tuple[float, int]], random: Any
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    found = group_advantages(*columns(rows), kind=kind)
    other = group_advantages(*columns([(rows[i][0], 7 - 5 * rows[i][1]) for i in order]), kind=kind)
    np.testing.assert_array_equal(found[order], other)


@pytest.mark.parametrize("kind", KINDS)
@given(ROWS, st.sampled_from([0.5, 2.0, 64.0]), st.sampled_from([-8.0, 0.0, 3.0]))
def test_the_advantages_of_a_group_sum_to_zero_and_a_shift_changes_nothing(
    kind: AdvantageKind, rows: list[tuple[float, int]], scale: float, shift: float
) -> None:
    coarse = [(r if math.isnan(r) else float(round(r) % 1024), g) for r, g in rows]
    found = group_advantages(*columns(coarse), kind=kind).astype(np.float64)
    for group in {g for _, g in coarse}:
        members = np.array([g == group for _, g in coarse])
        assert abs(np.nansum(found[members])) < 1e-3
    moved = [(scale * r + shift, g) for r, g in coarse]
    grown = 1.0 if kind == "grpo" else scale
    other = group_advantages(*columns(moved), kind=kind)
    np.testing.assert_allclose(other, grown * found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_right_answer_of_four(kind: AdvantageKind) -> None:
    rows = [(1.0, 0), (0.0, 0), (0.0, 0), (NAN, 0), (0.0, 0), (1.0, 1), (1.0, 2), (1.0, 2)]
    found = group_advantages(*columns(rows), kind=kind).tolist()
    right, wrong = {"grpo": (1.5, -0.5), "dr_grpo": (0.75, -0.25), "rloo": (1.0, -1 / 3)}[kind]
    assert found[:3] == pytest.approx([right, wrong, wrong], rel=3e-6)
    assert math.isnan(found[3]) and found[5:] == [0.0, 0.0, 0.0]
    assert group_figures(*columns(rows)) == GroupFigures(groups=3, without_spread=2)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exactly_zero_and_huge_ones_stay_finite(kind: AdvantageKind) -> None:
    equal = group_advantages(np.full(7, 0.1, np.float32), np.zeros(7, np.int64), kind=kind)
    assert equal.tolist() == [0.0] * 7
    largest = float(np.finfo(np.float32).max)
    huge = group_advantages(np.array([largest, -largest]), np.zeros(2, np.int64), kind=kind)
    assert np.isfinite(huge).all() and huge[0] == -huge[1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_without_rows_or_without_rewards_has_no_advantages(kind: AdvantageKind) -> None:
    assert group_advantages(*columns([]), kind=kind).shape == (0,)
    none = group_advantages(*columns([(NAN, 0), (NAN, 1)]), kind=kind)
    assert np.isnan(none).all()
    assert group_figures(*columns([(NAN, 0)])) == GroupFigures(0, 0)


@given(ROWS, st.sampled_from([0.5, 1.0]))
def test_pass_rates_are_those_of_plain_python(rows: list[tuple[float, int]], right: float) -> None:
    found = pass_rates(*columns(rows), right=right)
    for rate, (_, group) in zip(found.tolist(), rows, strict=True):
        known = [r for r, g in rows if g == group and not math.isnan(r)]
        expected = sum(r >= right for r in known) / len(known) if known else NAN
        assert rate == pytest.approx(expected, nan_ok=True)


def test_gates_keep_the_wrong_or_the_right_and_say_what_becomes_of_the_others() -> None:
    rewards = np.array([0.0, 0.5, 1.0, NAN], np.float32)
    wrong = reward_gate(rewards, right=1.0, keep="wrong", unknown=1.0)
    right = reward_gate(rewards, right=0.5, keep="right", unknown=0.0)
    assert wrong.tolist() == [1.0, 1.0, 0.0, 1.0] and right.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert wrong.dtype == right.dtype == np.float32


def test_pass_rates_weigh_hard_easy_or_undecided_prompts() -> None:
    rates = np.array([0.0, 0.25, 0.5, 1.0, NAN], np.float32)
    found = {
        kind: pass_rate_weights(rates, kind=kind, unknown=0.5).tolist()
        for kind in ("hard", "middle", "easy")
    }
    assert found == {
        "hard": [1.0, 0.75, 0.5, 0.0, 0.5],
        "middle": [0.0, 0.75, 1.0, 0.0, 0.5],
        "easy": [0.0, 0.25, 0.5, 1.0, 0.5],
    }
