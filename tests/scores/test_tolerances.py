"""What counts as the same model: limits that do not move, and figures that lose no NaN."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.scores.drift import Gap, gap_of
from pipeline.scores.tolerances import (
    export_limit,
    first_step_limit,
    noise_limit,
    reload_limit,
    servers_limit,
)
from schemas.config.train import TrainSection


@pytest.mark.parametrize(
    ("found", "float32", "rounded"), [(noise_limit, 1e-3, 0.1), (servers_limit, 1e-2, 0.5)]
)
def test_a_limit_is_that_of_the_number_format(
    found: Callable[[str], float], float32: float, rounded: float
) -> None:
    assert found("float32") == float32
    assert found("bfloat16") == found("float16") == rounded


@pytest.mark.parametrize(
    ("own", "limit"), [(0.0, 0.01), (0.004, 0.01), (0.02, 0.04), (0.05, 0.1), (3.0, 0.1)]
)
def test_after_a_reload_an_engine_is_allowed_twice_its_own_rounding(
    own: float, limit: float
) -> None:
    assert reload_limit(own) == limit


def test_the_configuration_counts_for_an_export_in_float32_only() -> None:
    assert export_limit(exact=True, configured=0.7) == 0.7
    assert export_limit(exact=False, configured=0.7) == 0.1
    assert TrainSection.model_fields["verify_tolerance"].default == noise_limit("float32")


def test_a_first_step_is_held_to_less_in_float32_than_in_16_bits() -> None:
    assert first_step_limit(exact=True) < 1e-3**2 * 2 < first_step_limit(exact=False)


def test_a_gap_is_the_mean_and_the_largest_difference_and_keeps_a_nan() -> None:
    ours, reference = np.array([-1.0, -2.0, -4.0]), np.array([-1.5, -2.0, -3.0])
    assert gap_of(ours, reference) == gap_of(reference, ours) == Gap(0.5, 1.0)
    broken = gap_of(ours, np.array([-1.0, math.nan, -4.0]))
    assert math.isnan(broken.mean) and math.isnan(broken.max)
