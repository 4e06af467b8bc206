"""Uniform numbers against SplitMix64 itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.randomness import derived_seed, uniforms

MASK = 2**64 - 1

SEEDS = st.integers(0, 2**63 - 1)


def splitmix64(seed: int, steps: int) -> list[int]:
    """The published algorithm in whole numbers, one step after the other."""
    state, found = seed, []
    for _ in range(steps):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_the_reference_gives_the_published_numbers() -> None:
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(SEEDS, min_size=1, max_size=4), st.integers(1, 9))
def test_uniforms_are_the_upper_bits_of_splitmix64(seeds: list[int], steps: int) -> None:
    found = uniforms(np.array(seeds, dtype=np.int64), steps)
    assert found.dtype == np.float64
    for row, seed in zip(found, seeds, strict=True):
        assert row.tolist() == [(bits >> 11) / 2**53 for bits in splitmix64(seed, steps)]


@given(st.lists(SEEDS, min_size=1, max_size=5, unique=True), st.integers(1, 20))
def test_a_rows_numbers_depend_on_its_seed_and_step_alone(seeds: list[int], steps: int) -> None:
    together = uniforms(np.array(seeds), steps)
    assert ((together >= 0) & (together < 1)).all()
    for row, seed in zip(together, seeds, strict=True):
        np.testing.assert_array_equal(row, uniforms(np.array([seed]), steps + 3)[0, :steps])
    assert len(np.unique(together)) == together.size


@pytest.mark.parametrize("seeds", ["derived", "neighbours"])
def test_uniforms_are_flat_in_pairs_of_steps_and_of_rows(seeds: str) -> None:
    count = 5000
    rows = {
        "derived": [derived_seed("x", i) for i in range(count)],
        "neighbours": list(range(count)),
    }
    found = uniforms(np.array(rows[seeds]), 2)
    for x, y in ((found[:, 0], found[:, 1]), (found[:-1, 0], found[1:, 0])):
        counts = np.histogram2d(x, y, bins=8, range=[[0, 1], [0, 1]])[0]
        expected = len(x) / 64
        assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * math.sqrt(2 * 63)


PARTS = st.lists(st.integers(-(2**60), 2**60) | st.text(max_size=5), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_a_seed_depends_on_every_part_and_on_their_order(
    one: list[int | str], other: list[int | str]
) -> None:
    assert 0 <= derived_seed(*one) < 2**63
    assert (derived_seed(*one) == derived_seed(*other)) == (one == other)
    assert derived_seed(*one, *other) != derived_seed(*one)


def test_seeds_are_those_of_the_runs_before() -> None:
    assert derived_seed("sample", 7, 0, "p", 0, 0) == 1040940198059628102
    assert derived_seed("1") != derived_seed(1)
