"""Buckets of positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.upkeep.figures import bounds_of, position_bucket_of


@given(st.integers(0, 1 << 20))
def test_a_position_is_in_the_bucket_whose_bounds_hold_it(position: int) -> None:
    (bucket,) = position_bucket_of(np.array([position])).tolist()
    low, high = bounds_of(bucket)
    assert low <= position <= high
