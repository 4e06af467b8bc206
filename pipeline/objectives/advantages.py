"""What rewards say of rows: advantages inside a prompt's group, pass rates, gates. Pure.

Shapes: R rows of a round. A reward is NaN where a row has none; such a row leaves its group.
Promises: what comes out depends on neither the order of rows nor the numbers of groups.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Floats
from schemas.config.evaluation import AdvantageKind
from schemas.config.rewards.gates import PassRateKind

Reals = NDArray[np.float64]
Groups = NDArray[np.int64]

EPSILON = 1e-6
"""Added to the standard deviation of a group, so that rewards that differ by rounding alone do not
become advantages of 1."""

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class GroupFigures:
    """How many groups of a round teach something."""

    groups: int
    """Groups with a reward at all."""
    without_spread: int
    """Those whose rewards are all equal, also because there is one only: each advantage is 0."""


@dataclass(frozen=True, eq=False)
class _Grouped:
    """The rows that have a reward, by group and then by value, and what their groups are."""

    rows: Groups
    """Where they stand."""
    values: Reals
    place: Groups
    """Group of each of them, numbered from 0."""
    count_G: Reals
    mean_G: Reals
    spread_G: NDArray[np.bool_]
    """Whether two rewards of the group differ."""


def group_advantages(reward_R: NDArray[Any], group_R: Groups, *, kind: AdvantageKind) -> Floats:
    """Return the advantage of each row inside its group; NaN where it has no reward.

    It is 0 in a group of one, and where all rewards of a group are equal.

    Args:
        reward_R: the rewards.
        group_R: number of each row's group: the samples of one prompt by one policy.
        kind: `grpo`: distance from the mean in standard deviations of the group (n − 1);
            `dr_grpo`: the distance itself; `rloo`: distance from the mean of the others.
    """
    found = _grouped(reward_R, group_R)
    centred = found.values - found.mean_G[found.place]
    groups = len(found.count_G)
    others_G = np.maximum(found.count_G - 1.0, 1.0)
    if kind == "grpo":
        squares_G = np.bincount(found.place, centred**2, groups)
        centred = centred / (np.sqrt(squares_G / others_G)[found.place] + EPSILON)
    elif kind == "rloo":
        centred = centred * (found.count_G / others_G)[found.place]
    centred = np.where(found.spread_G[found.place], centred, 0.0)
    found_R = np.full(len(reward_R), np.nan, np.float32)
    found_R[found.rows] = np.clip(centred, -LARGEST, LARGEST)
    return found_R


def group_figures(reward_R: NDArray[Any], group_R: Groups) -> GroupFigures:
    """Return how many groups have rewards, and how many have all the same."""
    found = _grouped(reward_R, group_R)
    return GroupFigures(len(found.spread_G), int((~found.spread_G).sum()))


def pass_rates(reward_R: NDArray[Any], group_R: Groups, *, right: float) -> Floats:
    """Return the share of right rows in each row's group; NaN where the group has no reward.

    Args:
        reward_R: the rewards.
        group_R: as of `group_advantages`.
        right: least reward of a right row.
    """
    numbers, place_R = np.unique(group_R, return_inverse=True)
    reward_R = np.asarray(reward_R, np.float64)
    known_R = ~np.isnan(reward_R)
    count_G = np.bincount(place_R, known_R, len(numbers))
    right_G = np.bincount(place_R, reward_R >= right, len(numbers))
    rate_G = np.divide(right_G, count_G, out=np.full(len(numbers), np.nan), where=count_G > 0)
    return np.asarray(rate_G[place_R], np.float32)


def reward_gate(
    reward_R: NDArray[Any], *, right: float, keep: Literal["right", "wrong"], unknown: float
) -> Floats:
    """Return the weight of each row: 1 where it is kept, else 0.

    Of the student's own rewards, `wrong` distils only what the student cannot do. Of the rewards
    or pass rates of the teacher's answers to the same prompts, `right` distils only what the
    teacher can.

    Args:
        reward_R: rewards, or pass rates.
        right: least one of a right answer.
        keep: which rows are kept.
        unknown: weight of rows that have no reward.
    """
    reward_R = np.asarray(reward_R, np.float64)
    kept_R = reward_R >= right if keep == "right" else reward_R < right
    return np.where(np.isnan(reward_R), unknown, kept_R).astype(np.float32)


def pass_rate_weights(rate_R: NDArray[Any], *, kind: PassRateKind, unknown: float) -> Floats:
    """Return the weight of each row by the pass rate p of its prompt, from 0 to 1.

    Args:
        rate_R: pass rates.
        kind: `hard`: 1 − p; `easy`: p; `middle`: 4 p (1 − p), which is 1 at one half.
        unknown: weight of rows whose prompt has no pass rate.
    """
    rate_R = np.asarray(rate_R, np.float64)
    weight_R = {"hard": 1.0 - rate_R, "easy": rate_R, "middle": 4.0 * rate_R * (1.0 - rate_R)}
    return np.where(np.isnan(rate_R), unknown, weight_R[kind]).astype(np.float32)


def _grouped(reward_R: NDArray[Any], group_R: Groups) -> _Grouped:
    """Return rewards by group; sums are taken in order of value, whatever the order of rows."""
    reward_R = np.asarray(reward_R, np.float64)
    rows = np.flatnonzero(~np.isnan(reward_R))
    rows = rows[np.lexsort((reward_R[rows], group_R[rows]))]
    values = reward_R[rows]
    _, first_G, place, count_G = np.unique(
        group_R[rows], return_index=True, return_inverse=True, return_counts=True
    )
    mean_G = np.bincount(place, values, len(count_G)) / count_G
    spread_G = values[first_G + count_G - 1] > values[first_G]
    return _Grouped(rows, values, place, count_G.astype(np.float64), mean_G, spread_G)
