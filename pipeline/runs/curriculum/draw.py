"""Prompts of a round by their difficulty, as a pure function of it, of seed and of round.

Shapes: R prompts of the table.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.runs.plan import Rows
from schemas.randomness import derived_seed

Values = NDArray[np.float64]


def draw_by_difficulty(
    difficulty_R: NDArray[np.floating],
    *,
    per_round: int,
    hardness: float,
    floor: float,
    round_index: int,
    seed: int,
) -> tuple[Rows, Rows]:
    """Return the prompt rows of a round and the number of each one's copy, int64 [per_round].

    Each prompt is expected as often as `expected_counts` says, and drawn as often as one of the two
    whole numbers around that.

    Args:
        difficulty_R: of each prompt, the harder the larger; NaN where it is not known.
        per_round: prompts to draw.
        hardness: 0 prefers the easiest prompts, 1 the hardest, 0.5 none.
        floor: share of its uniform chance that every prompt keeps.
        round_index: the round.
        seed: the run's.
    """
    counts_R = expected_counts(difficulty_R, per_round=per_round, hardness=hardness, floor=floor)
    random = np.random.default_rng(derived_seed("curriculum", seed, round_index))
    order_R = random.permutation(len(counts_R))
    ends_R = np.cumsum(counts_R[order_R])
    points = (np.arange(per_round) + random.random()) * (ends_R[-1] / per_round)
    place = np.searchsorted(ends_R, points, side="right")
    drawn = np.sort(order_R[np.minimum(place, len(order_R) - 1)])
    copies = np.arange(per_round) - np.searchsorted(drawn, drawn, side="left")
    mixed = random.permutation(per_round)  # units are of all difficulties
    return drawn[mixed].astype(np.int64), copies[mixed].astype(np.int64)


def expected_counts(
    difficulty_R: NDArray[np.floating], *, per_round: int, hardness: float, floor: float
) -> Values:
    """Return how often each prompt is expected in a round, float64; their sum is `per_round`.

    The weight of a prompt is linear in its rank among the known ones, from 1 − hardness for the
    easiest to hardness for the hardest; one that is not known counts as the middle one. None is
    expected more often than `per_round` prompts need: once, where there are as many.
    """
    count, most = len(difficulty_R), -(-per_round // len(difficulty_R))
    rank_R = _ranks(np.asarray(difficulty_R, dtype=np.float64))
    weight_R = (1.0 - hardness) * (1.0 - rank_R) + hardness * rank_R
    share_R = floor / count + (1.0 - floor) * weight_R / weight_R.sum()
    counts_R = share_R * per_round
    free_R = np.ones(count, dtype=bool)
    while (over_R := free_R & (counts_R > most)).any():
        counts_R[over_R], free_R = most, free_R & ~over_R
        left = per_round - most * (count - free_R.sum())
        counts_R[free_R] *= left / max(counts_R[free_R].sum(), 1e-300)
    return np.asarray(counts_R, dtype=np.float64)


def hardest(difficulty_R: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """Return which prompts are the hardest share of the known ones; equal ones go together."""
    rank_R = _ranks(np.asarray(difficulty_R, dtype=np.float64))
    return np.asarray(~np.isnan(difficulty_R) & (rank_R >= 1.0 - share))


def _ranks(difficulty_R: Values) -> Values:
    """Return ranks from 0, the easiest, to 1; equal ones share theirs, unknown ones have 0.5."""
    known_R = ~np.isnan(difficulty_R)
    rank_R = np.full(len(difficulty_R), 0.5)
    if known_R.sum() < 2:
        return rank_R
    _, place, size = np.unique(difficulty_R[known_R], return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - (size + 1) / 2
    rank_R[known_R] = middle[place] / (known_R.sum() - 1)
    return rank_R
