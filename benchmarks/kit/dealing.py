"""How well steps are dealt to ranks: plans over random lengths, priced as if they were run. Pure.

Rows are packed, or padded as for students that cannot be packed. With ZeRO 0 and 1 ranks meet once
a step, with 2 and 3 at every micro-batch: there each takes as long as its largest batch. A perfect
split has no padding and equal work everywhere, or is as long as the longest row. Shapes: R rows.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.kit.measure import Case, Spread, spread
from pipeline.learner.batches import StepPlan, packed_steps, plan_steps
from pipeline.learner.feed.balance import EVEN_TOKENS, row_work
from pipeline.learner.sequences import Rows
from pipeline.models.own.packing import packed_rows

RANKS = (1, 2, 8, 64)
ROWS, ROWS_PER_RANK = 256, 8
"""Of a step: the larger of the two."""

MICRO_TOKENS = 16_384

MIXES: dict[str, Callable[[np.random.Generator, int], Rows]] = {
    "short": lambda random, rows: random.integers(16, 26, rows),
    "chat": lambda random, rows: _lognormal(random, rows, middle=650, longest=4_096),
    "long": lambda random, rows: _lognormal(random, rows, middle=3_000, longest=16_384),
}
"""Lengths of rows: short answers; around 800 tokens; long chains of thought."""


def _lognormal(random: np.random.Generator, rows: int, *, middle: int, longest: int) -> Rows:
    drawn = random.lognormal(np.log(middle), 0.6, rows)
    return np.clip(drawn, 32, longest).astype(np.int64)


def dealing_cases(*, quick: bool, seed: int) -> list[Case]:
    """Return what dealing costs for each mix of lengths and number of ranks."""
    return [
        _case(mix, ranks, steps=4 if quick else 32, seed=seed) for mix in MIXES for ranks in RANKS
    ]


def _case(mix: str, ranks: int, *, steps: int, seed: int) -> Case:
    per_step = max(ROWS, ranks * ROWS_PER_RANK)
    total_R = MIXES[mix](np.random.default_rng(seed), steps * per_step)
    order = np.arange(len(total_R), dtype=np.int64)
    plans = plan_steps(
        [order], total_R, total_R, per_step=per_step, micro_tokens=MICRO_TOKENS, processes=ranks
    )
    packed = packed_steps(plans, total_R, micro_tokens=MICRO_TOKENS, processes=ranks)
    return {
        "case": f"{mix} rows on {ranks} rank{'s' * (ranks > 1)}",
        "rows": per_step,
        "micro_batches": _over(packed, lambda plan: len(plan.micro)),
        "critical_path_ratio": _over(packed, lambda plan: _path(plan, total_R)),
        "padding_share": _over(packed, lambda plan: _packed_padding(plan, total_R)),
        "waiting_path_ratio": _over(packed, lambda plan: _path(plan, total_R, waits=True)),
        "padded_micro_batches": _over(plans, lambda plan: len(plan.micro)),
        "padded_path_ratio": _over(plans, lambda plan: _path(plan, total_R, padded=True)),
        "padded_padding_share": _over(plans, lambda plan: _padding(plan, total_R)),
    }


def _over(plans: list[StepPlan], figure: Callable[[StepPlan], float]) -> Spread:
    return spread([figure(plan) for plan in plans])


def _path(plan: StepPlan, total_R: Rows, *, padded: bool = False, waits: bool = False) -> float:
    """Return the price of a step over that of a perfect split.

    Args:
        plan: the step.
        total_R: tokens of all rows.
        padded: whether each row of a batch costs as much as its longest; ranks wait then.
        waits: whether ranks meet at every micro-batch.
    """
    work_R = row_work(total_R)
    rows = np.concatenate([rows for micro in plan.micro for rows in micro])
    perfect = max(work_R[rows].sum() / len(plan.micro[0]), work_R[rows].max())
    cost = _padded_work if padded else _packed_work
    costs = np.array([[cost(total_R[rows]) for rows in micro] for micro in plan.micro])
    longest = costs.max(axis=1).sum() if waits or padded else costs.sum(axis=0).max()
    return float(longest / perfect)


def _padded_work(tokens: Rows) -> float:
    """Return what a batch costs whose rows are padded to its longest."""
    return float(len(tokens) * row_work(tokens).max(initial=0.0))


def _packed_work(tokens: Rows) -> float:
    """Return what packed rows cost: attention pads each of its groups to the longest row."""
    if not len(tokens):
        return 0.0
    shapes = packed_rows(tokens).shapes
    return float(tokens.sum() + sum(rows * size**2 for rows, size in shapes) / EVEN_TOKENS)


def _packed_padding(plan: StepPlan, total_R: Rows) -> float:
    """Return which share of the work of a step of packed rows is padding, in attention alone."""
    batches = [total_R[rows] for micro in plan.micro for rows in micro if len(rows)]
    work = sum(float(row_work(tokens).sum()) for tokens in batches)
    return 1 - work / sum(_packed_work(tokens) for tokens in batches)


def _padding(plan: StepPlan, total_R: Rows) -> float:
    """Return which share of the tokens that a step computes is padding."""
    batches = [rows for micro in plan.micro for rows in micro if len(rows)]
    padded = sum(len(rows) * int(total_R[rows].max()) for rows in batches)
    return 1 - plan.trained_tokens / padded
