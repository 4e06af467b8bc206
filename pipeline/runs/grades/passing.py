"""How often at least one of k samples of a prompt is right, from n of them: without bias. Pure."""

from itertools import takewhile

import numpy as np
import numpy.typing as npt

Grades = npt.NDArray[np.float64]


def pass_at(grades_PN: Grades) -> dict[str, float]:
    """Return k → the mean over prompts of the chance that one of k samples is right.

    With c of n samples right it is 1 − C(n − c, k) / C(n, k), which is unbiased for each k: powers
    of two, and n itself. Nothing where there is one sample, or a grade that is neither 0 nor 1.

    Args:
        grades_PN: prompts by samples.
    """
    samples = grades_PN.shape[1]
    if samples < 2 or not np.isin(grades_PN, (0.0, 1.0)).all():
        return {}
    wrong_P = samples - grades_PN.sum(axis=1)
    counts = takewhile(lambda k: k < samples, (1 << power for power in range(32)))
    return {str(k): _mean_chance(wrong_P, samples, k) for k in (*counts, samples)}


def _mean_chance(wrong_P: Grades, samples: int, k: int) -> float:
    """Return the mean chance that not all of k samples, drawn from all, are wrong."""
    drawn = np.arange(k)
    factors = np.clip(wrong_P[:, None] - drawn, 0.0, None) / (samples - drawn)
    return float(1.0 - factors.prod(axis=1).mean())
