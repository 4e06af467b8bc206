"""Order and cutting of optimizer steps: each row once, whatever the processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.batches import (
    StepPlan,
    cut_epoch,
    epoch_order,
    plan_mark,
    plan_steps,
    steps_of_old,
)
from pipeline.learner.sequences import Lengths, Rows
from schemas.config.train import TrainSection

SHARDS = st.lists(st.integers(1, 6), min_size=1, max_size=9)


def order_of(shards: list[int], *, seed: int = 0, epoch: int = 0, group: int = 3) -> list[int]:
    rows = epoch_order(np.array(shards), seed=seed, epoch=epoch, shuffle_shards=group)
    assert rows.dtype == np.int64
    found: list[int] = rows.tolist()
    return found


@given(SHARDS, st.integers(0, 99), st.integers(0, 3), st.integers(1, 10))
def test_an_epoch_holds_each_row_once_and_is_a_pure_function(
    shards: list[int], seed: int, epoch: int, group: int
) -> None:
    found = order_of(shards, seed=seed, epoch=epoch, group=group)
    assert sorted(found) == list(range(sum(shards)))
    np.random.default_rng().permutation(9)
    assert found == order_of(shards, seed=seed, epoch=epoch, group=group)


@given(SHARDS, st.integers(0, 99), st.integers(1, 10))
def test_only_a_group_of_shards_is_read_at_a_time(shards: list[int], seed: int, group: int) -> None:
    shard_of = np.repeat(np.arange(len(shards)), shards)
    order = shard_of[order_of(shards, seed=seed, group=group)].tolist()
    ends = {shard: (order.index(shard), len(order) - order[::-1].index(shard)) for shard in order}
    for position in range(len(order)):
        held = [first for first, end in ends.values() if first <= position < end]
        assert len(held) <= group


def test_shards_and_rows_are_shuffled_and_epochs_and_seeds_differ() -> None:
    shards = [10] * 6
    orders = [
        tuple(order_of(shards, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    first_groups = {frozenset(row // 10 for row in order[:30]) for order in orders}
    assert len(first_groups) > 1, "shards stay in their order"
    assert any(np.any(np.diff(order[:30]) < 0) for order in orders), "rows stay in their order"
    alternations = sum(a // 10 != b // 10 for a, b in zip(orders[0], orders[0][1:], strict=False))
    assert alternations > 20, "rows of a group's shards are not mixed"


@st.composite
def work(draw: st.DrawFn) -> tuple[list[Rows], Rows, Rows]:
    """Return orders of some epochs, and total and trained tokens of each row."""
    total = draw(st.lists(st.integers(2, 40), min_size=1, max_size=30))
    trained = [draw(st.integers(1, tokens)) for tokens in total]
    usable = draw(st.lists(st.integers(0, len(total) - 1), min_size=1, unique=True))
    orders = [draw(st.permutations(usable)) for _ in range(draw(st.integers(1, 3)))]
    return (
        [np.array(order, dtype=np.int64) for order in orders],
        np.array(total, dtype=np.int64),
        np.array(trained, dtype=np.int64),
    )


def rows_of(step: StepPlan) -> list[int]:
    return [row for micro in step.micro for rows in micro for row in rows.tolist()]


@given(work(), st.integers(1, 12), st.integers(1, 90), st.integers(1, 5))
def test_steps_hold_the_rows_of_the_order_each_once(
    work: tuple[list[Rows], Rows, Rows], per_step: int, micro_tokens: int, processes: int
) -> None:
    orders, total, trained = work
    steps = plan_steps(
        orders, total, trained, per_step=per_step, micro_tokens=micro_tokens, processes=processes
    )
    expected = [rows.tolist() for order in orders for rows in cut_epoch(order, per_step)]
    assert [sorted(rows_of(step)) for step in steps] == [sorted(rows) for rows in expected]
    assert [step.trained_tokens for step in steps] == [
        sum(int(trained[row]) for row in rows) for rows in expected
    ]


@pytest.mark.parametrize(
    ("rows", "per_step", "sizes"),
    [
        (128, 64, [64, 64]),
        (129, 64, [64, 65]),
        (159, 64, [64, 95]),
        (160, 64, [64, 64, 32]),
        (1, 64, [1]),
        (63, 64, [63]),
        (3, 2, [2, 1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_few_rows_that_are_left_over_join_the_step_before_them(
    rows: int, per_step: int, sizes: list[int]
) -> None:
    steps = cut_epoch(np.arange(rows), per_step)
    assert [len(step) for step in steps] == sizes
    assert np.concatenate(steps).tolist() == list(range(rows))


@given(work(), st.integers(1, 12), st.integers(1, 90), st.integers(1, 5))
def test_a_micro_batch_has_rows_on_some_process_and_room_for_them(
    work: tuple[list[Rows], Rows, Rows], per_step: int, micro_tokens: int, processes: int
) -> None:
    orders, total, trained = work
    steps = plan_steps(
        orders, total, trained, per_step=per_step, micro_tokens=micro_tokens, processes=processes
    )
    for step in steps:
        assert all(len(micro) == processes for micro in step.micro)
        assert all(sum(map(len, micro)) for micro in step.micro)
        batches = [rows for micro in step.micro for rows in micro if len(rows)]
        for rows in batches:
            assert len(rows) == 1 or len(rows) * max(total[rows]) <= micro_tokens


@given(work(), st.integers(1, 12), st.integers(1, 90))
def test_the_number_of_processes_never_changes_what_a_step_trains(
    work: tuple[list[Rows], Rows, Rows], per_step: int, micro_tokens: int
) -> None:
    orders, total, trained = work
    plans = [
        plan_steps(
            orders, total, trained, per_step=per_step, micro_tokens=micro_tokens, processes=n
        )
        for n in (1, 2, 3)
    ]
    one, *others = [[(sorted(rows_of(s)), s.trained_tokens) for s in plan] for plan in plans]
    assert others == [one, one]
    assert len({plan_mark(plan) for plan in plans}) == 1


def test_the_mark_of_a_plan_tells_which_rows_are_trained_together() -> None:
    lengths = np.full(8, 5)

    def mark(*steps: list[int]) -> str:
        orders = [np.array(rows) for rows in steps]
        return plan_mark(
            plan_steps(orders, lengths, lengths, per_step=8, micro_tokens=10, processes=2)
        )

    assert mark([0, 1, 2], [3, 4]) == mark([2, 0, 1], [4, 3])
    assert len({mark([0, 1, 2], [3, 4]), mark([0, 1], [2, 3, 4]), mark([3, 4], [0, 1, 2])}) == 3


@pytest.mark.parametrize(("rows", "same"), [(128, True), (129, False), (160, True), (20, True)])
def test_it_is_known_where_an_older_opd_made_other_steps(rows: int, same: bool) -> None:
    """It made one of whatever was left over at the end of an epoch."""
    one = np.ones(rows + 1, dtype=np.int64)
    one[-1] = 0  # a row that is not trained
    train = TrainSection(learning_rate=1.0, sequences_per_step=64, epochs=2)
    before = steps_of_old(Lengths(np.array([rows + 1]), one, one, one >= 0), train)
    assert before == 2 * len([*range(0, rows, 64)])
    assert (before == 2 * len(cut_epoch(np.arange(rows), 64))) == same
