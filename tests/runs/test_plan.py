"""The plan of rounds: what is drawn, how it is cut and which seeds it has."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.plan import Unit, cut_units, draw_prompts, sample_seeds

ROWS, PER_ROUND = st.integers(1, 20), st.integers(1, 25)


def draw(rows: int, per_round: int, rounds: int, seed: int = 3) -> list[tuple[int, int]]:
    """Return (epoch, prompt row) of everything that some rounds draw, in order."""
    found: list[tuple[int, int]] = []
    for index in range(rounds):
        drawn, epochs = draw_prompts(rows, per_round=per_round, round_index=index, seed=seed)
        assert drawn.dtype == epochs.dtype == np.int64 and len(drawn) == len(epochs) == per_round
        found += zip(epochs.tolist(), drawn.tolist(), strict=True)
    return found


@given(ROWS, PER_ROUND, st.integers(1, 6))
def test_rounds_walk_through_whole_epochs_one_after_the_other(
    rows: int, per_round: int, rounds: int
) -> None:
    found = draw(rows, per_round, rounds)
    assert [epoch for epoch, _ in found] == [i // rows for i in range(len(found))]
    assert max(Counter(found).values()) == 1
    for start in range(0, len(found) - rows + 1, rows):
        assert sorted(row for _, row in found[start : start + rows]) == list(range(rows))


@given(ROWS, PER_ROUND, st.integers(0, 50))
def test_a_round_is_a_function_of_its_number_alone(
    rows: int, per_round: int, round_index: int
) -> None:
    whole = draw(rows, per_round, round_index + 1)[round_index * per_round :]
    drawn, epochs = draw_prompts(rows, per_round=per_round, round_index=round_index, seed=3)
    assert list(zip(epochs.tolist(), drawn.tolist(), strict=True)) == whole


def test_the_size_of_a_round_does_not_change_the_order() -> None:
    assert draw(11, 4, 9) == draw(11, 12, 3) == draw(11, 36, 1)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    rows = 30
    orders = [
        tuple(row for _, row in draw(rows, rows, 3, seed)[start : start + rows])
        for seed in range(4)
        for start in range(0, 3 * rows, rows)
    ]
    assert len(set(orders)) == len(orders)
    assert tuple(range(rows)) not in orders


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 9))
def test_units_hold_every_sample_of_every_prompt_in_order(
    prompts: int, samples: int, per_unit: int
) -> None:
    random = np.random.default_rng(0)
    rows, epochs = random.permutation(prompts), random.integers(0, 3, prompts)
    units = cut_units(rows, epochs, samples_per_prompt=samples, prompts_per_unit=per_unit)
    expected = [
        (row, epoch, sample)
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True)
        for sample in range(samples)
    ]
    assert [sequence for unit in units for sequence in sequences(unit)] == expected
    assert [len(unit.rows) for unit in units[:-1]] == [per_unit * samples] * (len(units) - 1)
    assert 0 < len(units[-1].rows) <= per_unit * samples


def sequences(unit: Unit) -> list[tuple[int, int, int]]:
    columns = (unit.rows.tolist(), unit.epochs.tolist(), unit.sample_indices.tolist())
    return list(zip(*columns, strict=True))


def test_units_are_named_in_the_order_of_their_names() -> None:
    rows = np.arange(1200)
    units = cut_units(rows, rows, samples_per_prompt=1, prompts_per_unit=1)
    assert all(one.name < other.name for one, other in pairwise(units))


def seeds(unit: Unit, *, seed: int = 1, round_index: int = 0) -> list[int]:
    keys = [f"p{row}" for row in unit.rows]
    return sample_seeds(unit, keys, seed=seed, round_index=round_index)


def test_every_seed_round_prompt_epoch_and_sample_has_a_seed_of_its_own() -> None:
    found = []
    for epoch in range(3):
        units = cut_units(np.arange(4), np.full(4, epoch), samples_per_prompt=3, prompts_per_unit=2)
        for unit in units:
            for round_index in range(3):
                found += seeds(unit, round_index=round_index)
            found += seeds(unit, seed=2)
    assert len(found) == 3 * 4 * 3 * 4
    assert len(set(found)) == len(found)
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in found)


def test_a_seed_does_not_depend_on_how_units_are_cut() -> None:
    rows, epochs = np.arange(7), np.zeros(7, dtype=np.int64)
    found = []
    for size in (1, 3, 7):
        units = cut_units(rows, epochs, samples_per_prompt=2, prompts_per_unit=size)
        found.append([seed for unit in units for seed in seeds(unit)])
    assert found[0] == found[1] == found[2]


def test_seeds_are_those_of_every_earlier_version() -> None:
    unit = Unit("u00000", np.array([4]), np.array([0]), np.array([2]))
    assert seeds(unit) == [5553350378376681984]
