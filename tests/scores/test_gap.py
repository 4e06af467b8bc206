"""What counts of a gap: the largest difference in float32, their mean in 16 bits, NaN never."""

import math

import pytest

from pipeline.scores.drift import Gap


@pytest.mark.parametrize(
    ("gap", "dtype", "words"),
    [
        (Gap(1e-4, 1e-3), "float32", None),
        (Gap(1e-4, 2e-3), "float32", "1.0e-03 at most would pass for rounding in float32"),
        (Gap(1e-3, 1.0), "bfloat16", None),
        (Gap(2e-3, 1.0), "bfloat16", "1.0e-03 on average would pass for rounding in bfloat16"),
        (Gap(0.0, math.nan), "float32", "1.0e-03 at most would pass for rounding in float32"),
        (Gap(math.nan, 0.0), "float16", "1.0e-03 on average would pass for rounding in float16"),
    ],
)
def test_a_gap_beyond_rounding_says_what_would_have_passed(
    gap: Gap, dtype: str, words: str | None
) -> None:
    assert gap.beyond(1e-3, dtype) == words
