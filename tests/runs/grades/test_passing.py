"""pass@k from n samples: the chance that one of k drawn ones is right, averaged over prompts."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from pipeline.runs.grades.passing import pass_at


@pytest.mark.parametrize("samples", [2, 3, 5, 8])
def test_it_is_the_share_of_all_draws_that_have_a_right_one(samples: int) -> None:
    grades = np.random.default_rng(samples).integers(0, 2, (40, samples)).astype(float)
    found = pass_at(grades)
    for k, value in found.items():
        draws = [row[list(c)].max() for row in grades for c in combinations(range(samples), int(k))]
        assert len(draws) == 40 * comb(samples, int(k))
        assert value == pytest.approx(np.mean(draws))
    assert found["1"] == pytest.approx(grades.mean())
    assert found[str(samples)] == pytest.approx(grades.max(axis=1).mean())


def test_the_counts_are_powers_of_two_and_all_samples() -> None:
    assert list(pass_at(np.zeros((3, 6)))) == ["1", "2", "4", "6"]
    assert pass_at(np.ones((3, 4))) == {"1": 1.0, "2": 1.0, "4": 1.0}
    assert set(pass_at(np.zeros((2, 1024))).values()) == {0.0}


@pytest.mark.parametrize("grades", [np.ones((5, 1)), np.full((5, 4), 0.5), np.full((5, 2), 2.0)])
def test_one_sample_or_a_grade_between_says_nothing_of_it(grades: np.ndarray) -> None:
    assert pass_at(grades) == {}
