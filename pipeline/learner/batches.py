"""Order of rows and cutting of steps into micro-batches, planned up front. Pure.

Promises: the order is a function of (rows, seed, epoch) alone; which rows a step trains depends on
neither processes nor memory; a step has as many micro-batches as it needs, the same number on every
process; each row is trained exactly once per epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.learner.feed.balance import deal, deal_packed
from pipeline.learner.sequences import Lengths, Rows
from schemas.config.train import TrainSection
from schemas.errors import DataError
from schemas.fingerprint import DIGEST_CHARS, sha256
from schemas.randomness import derived_seed


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: `micro[m][rank]` are the rows of a micro-batch, maybe none."""

    micro: tuple[tuple[Rows, ...], ...]
    trained_tokens: int
    """Tokens with a loss, over all processes: the loss is divided by it."""


def round_steps(
    lengths: Lengths, train: TrainSection, *, run_seed: int, round_index: int, processes: int
) -> list[StepPlan]:
    """Return the optimizer steps of a round: which rows each takes, on every process.

    Args:
        lengths: of the round's rows.
        train: settings of the learner.
        run_seed: root of the run's randomness.
        round_index: the round.
        processes: data-parallel processes.

    Raises:
        DataError: no row can be trained.
    """
    usable_R = lengths.usable_R
    if not usable_R.any():
        raise DataError(
            f"round {round_index} has no row to train on: {int((~lengths.fresh_R).sum())} are "
            "stale, the others have no token of the student's own"
        )
    seed = derived_seed("train", run_seed, round_index)
    orders: list[Rows] = []
    for epoch in range(train.epochs):
        order = epoch_order(
            lengths.unit_rows_U, seed=seed, epoch=epoch, shuffle_shards=train.shuffle_shards
        )
        orders.append(order[usable_R[order]])
    return plan_steps(
        orders,
        lengths.total_tokens_R,
        lengths.trained_tokens_R,
        per_step=train.sequences_per_step,
        micro_tokens=train.micro_batch_tokens,
        processes=processes,
    )


def packed_steps(
    steps: Sequence[StepPlan], total_tokens: Rows, *, micro_tokens: int, processes: int
) -> list[StepPlan]:
    """Return steps over the same rows, dealt for a learner that packs them.

    Args:
        steps: as `plan_steps` gives them.
        total_tokens: of each row of the round.
        micro_tokens: tokens that a micro-batch may have; a longer row stands alone.
        processes: data-parallel processes.
    """
    found = []
    for step in steps:
        rows = np.sort(np.concatenate([r for micro in step.micro for r in micro]))
        dealt = deal_packed(total_tokens[rows], micro_tokens=micro_tokens, processes=processes)
        micro = tuple(tuple(rows[batch] for batch in batches) for batches in dealt)
        found.append(StepPlan(micro, step.trained_tokens))
    return found


def plan_mark(steps: Sequence[StepPlan]) -> str:
    """Return the digest of which rows each step trains: their order in a step says nothing."""
    sets = [np.sort(np.concatenate([r for m in step.micro for r in m])) for step in steps]
    sizes = np.array([len(rows) for rows in sets], dtype="<i8")
    return sha256(sizes.tobytes() + np.concatenate(sets).astype("<i8").tobytes())[:DIGEST_CHARS]


def steps_of_old(lengths: Lengths, train: TrainSection) -> int:
    """Return how many steps an older opd made of a round: what was left over was always one."""
    return train.epochs * -(-int(lengths.usable_R.sum()) // train.sequences_per_step)


def epoch_order(unit_rows: Rows, *, seed: int, epoch: int, shuffle_shards: int) -> Rows:
    """Return all rows in training order, int64 [rows].

    Shards are shuffled, then rows within groups of `shuffle_shards`, so that a reader needs only a
    group of shards in memory.

    Args:
        unit_rows: rows of each shard; rows are numbered through shards in this order.
        seed: root of the randomness.
        epoch: pass over the rows.
        shuffle_shards: shards in a group.
    """
    random = np.random.default_rng(derived_seed("order", seed, epoch))
    starts = np.cumsum(unit_rows) - unit_rows
    shards = random.permutation(len(unit_rows))
    groups = []
    for first in range(0, len(shards), shuffle_shards):
        group = shards[first : first + shuffle_shards]
        rows = np.concatenate([np.arange(starts[s], starts[s] + unit_rows[s]) for s in group])
        groups.append(random.permutation(rows))
    return np.asarray(np.concatenate(groups), dtype=np.int64)


def plan_steps(
    orders: Sequence[Rows],
    total_tokens: Rows,
    trained_tokens: Rows,
    *,
    per_step: int,
    micro_tokens: int,
    processes: int,
) -> list[StepPlan]:
    """Return the optimizer steps over the rows of some epochs.

    Args:
        orders: rows in training order, of each epoch.
        total_tokens: prompt and response tokens of each row.
        trained_tokens: tokens with a loss of each row.
        per_step: rows of a step; the last step of an epoch may have fewer or more, see `cut_epoch`.
        micro_tokens: padded tokens that a micro-batch may have; a longer row stands alone.
        processes: data-parallel processes.
    """
    return [
        _step(rows, total_tokens, trained_tokens, micro_tokens=micro_tokens, processes=processes)
        for order in orders
        for rows in cut_epoch(order, per_step)
    ]


def cut_epoch(order: Rows, per_step: int) -> list[Rows]:
    """Return the rows of each step of an epoch.

    What is left at its end is a step of its own where it is half of one at least; else it joins the
    step before it, for a step of few rows moves the weights as far as a whole one does.
    """
    whole, left = divmod(len(order), per_step)
    count = max(1, whole + (2 * left >= per_step))
    return np.split(order, np.arange(1, count) * per_step)


def _step(
    rows: Rows, total_tokens: Rows, trained_tokens: Rows, *, micro_tokens: int, processes: int
) -> StepPlan:
    """Return the step over some rows."""
    dealt = deal(total_tokens[rows], micro_tokens=micro_tokens, processes=processes)
    return StepPlan(
        micro=tuple(tuple(rows[batch] for batch in micro) for micro in dealt),
        trained_tokens=int(trained_tokens[rows].sum()),
    )
