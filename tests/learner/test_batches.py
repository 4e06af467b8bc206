"""Order and cutting of optimizer steps: each row once, the same shape on every process."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.batches import StepPlan, epoch_order, plan_steps
from pipeline.learner.sequences import Rows

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
    expected = [
        order[i : i + per_step].tolist() for order in orders for i in range(0, len(order), per_step)
    ]
    assert [sorted(rows_of(step)) for step in steps] == [sorted(rows) for rows in expected]
    assert [step.trained_tokens for step in steps] == [
        sum(int(trained[row]) for row in rows) for rows in expected
    ]


@given(work(), st.integers(1, 12), st.integers(1, 90), st.integers(1, 5))
def test_every_step_has_the_same_number_of_micro_batches_on_every_process(
    work: tuple[list[Rows], Rows, Rows], per_step: int, micro_tokens: int, processes: int
) -> None:
    orders, total, trained = work
    steps = plan_steps(
        orders, total, trained, per_step=per_step, micro_tokens=micro_tokens, processes=processes
    )
    assert len({len(step.micro) for step in steps}) == 1
    assert {len(micro) for step in steps for micro in step.micro} == {processes}
    fullest = max(sum(len(rows) > 0 for m in step.micro for rows in m) for step in steps)
    assert len(steps[0].micro) == -(-fullest // processes), "more micro-batches than are needed"
    for step in steps:
        loads = [sum(len(micro[rank]) > 0 for micro in step.micro) for rank in range(processes)]
        assert max(loads) - min(loads) <= 1, "one process has more work than another"


@given(work(), st.integers(1, 12), st.integers(1, 90), st.integers(1, 5))
def test_a_micro_batch_stays_within_its_tokens_unless_it_is_one_long_row(
    work: tuple[list[Rows], Rows, Rows], per_step: int, micro_tokens: int, processes: int
) -> None:
    orders, total, trained = work
    steps = plan_steps(
        orders, total, trained, per_step=per_step, micro_tokens=micro_tokens, processes=processes
    )
    for rows in (rows for step in steps for micro in step.micro for rows in micro):
        padded = len(rows) * max(total[rows], default=0)
        assert padded <= micro_tokens or len(rows) == 1


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


def test_processes_get_rows_of_neighbouring_lengths_at_a_time() -> None:
    total = np.array([7, 3, 12, 5, 9, 2, 11, 4, 8, 6, 10], dtype=np.int64)
    plans = plan_steps([np.arange(11)], total, total, per_step=11, micro_tokens=1, processes=3)
    lengths = [[total[rows].tolist() for rows in micro] for micro in plans[0].micro]
    assert lengths == [[[12], [11], [10]], [[9], [8], [7]], [[6], [5], [4]], [[3], [2], []]]
