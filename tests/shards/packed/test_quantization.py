"""Levels of log-probabilities: the nearest, in order, exact at the ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.packed.quantization import COARSE, FINE, levels, values

INF = math.inf
LOGPROB = st.integers(0, 2**24).map(lambda n: -n / 2**17) | st.integers(0, 999).map(
    lambda n: -n / 1e5
)
DROPS = pytest.mark.parametrize("drop", [FINE, COARSE])


def test_levels_grow_as_log_probabilities_fall_and_are_their_own_nearest() -> None:
    for drop in (FINE, COARSE):
        found = np.arange(4096, dtype=np.int32)
        logprobs = values(found, drop=drop)
        assert (np.diff(logprobs) < 0).all()
        assert levels(logprobs, drop=drop).tolist() == found.tolist()
    assert levels(np.array([1e-3, 0.0], np.float32), drop=FINE).tolist() == [0, 0]


@DROPS
@given(st.lists(LOGPROB, min_size=1, max_size=20))
def test_no_other_level_is_nearer(drop: int, logprobs: list[float]) -> None:
    exact = np.array(logprobs, np.float32)
    found = levels(exact, drop=drop)
    gap = np.abs(values(found, drop=drop).astype(float) - exact)
    size = 2.0 - exact.astype(float)
    for other in (found + 1, np.maximum(found - 1, 0)):
        theirs = np.abs(values(other, drop=drop).astype(float) - exact)
        assert (gap <= theirs + size * 2.0**-23).all()  # 2 - x is rounded to float32 itself
    assert (gap <= size * (2.0 ** (drop - 24) + 2.0**-23)).all()


@DROPS
def test_the_ends_come_back_exactly(drop: int) -> None:
    ends = np.array([0.0, -INF], np.float32)
    assert values(levels(ends, drop=drop), drop=drop).tolist() == [0.0, -INF]
    finite = levels(np.array([-3e38], np.float32), drop=drop)
    assert finite < levels(ends[1:], drop=drop)
