"""Intervals of accuracies: Wilson's, which hold for few samples and near 0 and 1. Pure."""

import math
from typing import NamedTuple

from schemas.records.runs import EvalManifest

Z = 1.959963984540054
"""Standard normal quantile of intervals that hold 95 % of the time."""


class Interval(NamedTuple):
    """A mean and where it may truly lie."""

    mean: float
    low: float
    high: float


def wilson(share: float, count: float) -> Interval:
    """Return Wilson's 95 % interval of a share of `count` independent trials."""
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def accuracy_interval(graded: EvalManifest, *, samples: int) -> Interval:
    """Return the accuracy of an evaluation with its 95 % interval.

    Several samples of a prompt are no independent trials, and grades between 0 and 1 vary less than
    those of coins: the stored standard error, which is taken over prompts, says how many trials
    would vary as much. Grades outside [0, 1] have the normal interval.

    Args:
        graded: the evaluation.
        samples: responses of each prompt.
    """
    mean, error = graded.accuracy, graded.standard_error
    if not 0.0 <= mean <= 1.0 or not graded.rows:
        return Interval(mean, mean - Z * error, mean + Z * error)
    prompts = graded.rows / max(samples, 1)
    right = mean * graded.rows
    if samples == 1 and math.isclose(right, round(right), abs_tol=1e-6 * graded.rows):
        return wilson(mean, graded.rows)
    alike = mean * (1 - mean) / (error * error) if error > 0 else prompts
    return wilson(mean, min(max(alike, 1.0), graded.rows))
