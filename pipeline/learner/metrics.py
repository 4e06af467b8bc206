"""Figures of optimizer steps: of one step, of a round's first one, and stored for a round."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.runs.run import Run
from pipeline.scores.tolerances import first_step_limit
from pipeline.shards.parquet import write_table
from pipeline.store.commit import content_shard
from schemas.errors import ConfigError, DataError
from schemas.keys import metrics_folder
from schemas.records.joins import standard_error
from schemas.records.runs import RolloutPlan
from schemas.records.scores import RowSquares
from schemas.records.shards import Shard

if TYPE_CHECKING:
    from pipeline.learner.batches import StepPlan

TOO_HIGH = (
    "lower train.learning_rate or train.max_grad_norm, or raise train.warmup_steps, under another "
    "run.name. Nothing of this step was saved: the states and checkpoints before it stand"
)
"""What to do about numbers that ran away; targets are checked before they are trained on."""

Step = dict[str, float | None]

OF_ROWS = ("own_kl", "own_mass", "own_kl_kl", "own_kl_mass", "own_mass_mass", "own_rows")
"""Sums over a step's rows, which `head_loss` gives where it is asked for them."""


MOST_SKIPPED = 2
"""Steps in a row that may be skipped: one bad batch passes, weights that ran away do not."""


def step_metrics(
    totals: dict[str, float], plan: "StepPlan", norm: float | None, learning_rate: float
) -> Step:
    """Return the figures of a step from the sums over its tokens.

    A step whose loss or gradient is no number changed no weight: it is `skipped`, and figures of it
    that are no numbers are None.
    """
    loss, weight = totals.pop("loss"), totals.pop("weight")
    own = _of_student({name: totals.pop(name) for name in OF_ROWS if name in totals})
    means = {name: total / max(weight, 1e-9) for name, total in totals.items()}
    figures = {
        "loss": loss / max(plan.trained_tokens, 1),
        "tokens": float(plan.trained_tokens),
        "learning_rate": learning_rate,
        "grad_norm": None if norm is None else float(norm),
        **means,
        **own,
    }
    numbers = {n: v if v is None or math.isfinite(v) else None for n, v in figures.items()}
    lost = numbers["loss"] is None or (norm is not None and numbers["grad_norm"] is None)
    return {**numbers, "skipped": float(lost)}


def _of_student(sums: dict[str, float]) -> dict[str, float | None]:
    """Return the reverse KL of the student itself and its error, from weighted sums over rows."""
    if not sums:
        return {}
    mass = sums["own_mass"]
    mean = sums["own_kl"] / mass if mass > 0.0 else math.nan
    squares = RowSquares.model_construct(
        values=sums["own_kl_kl"], products=sums["own_kl_mass"], weights=sums["own_mass_mass"]
    )
    error = standard_error(mean, mass, squares, rows=int(sums["own_rows"]))
    return {"own_reverse_kl": mean, "own_reverse_kl_error": error}


def applied(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that were not skipped."""
    return [step for step in steps if not step.get("skipped")]


def skip_note(steps: Sequence[Step], *, is_last: bool) -> str | None:
    """Return what to tell of the newest step where it was skipped, else None.

    Args:
        steps: of the round so far.
        is_last: whether the round ends with it.

    Raises:
        ConfigError: too many in a row were, or all of a round.
    """
    row = len(steps) - max((n for n, step in enumerate(steps, 1) if applied([step])), default=0)
    if not row:
        return None
    name = "loss" if steps[-1]["loss"] is None else "gradient norm"
    if row > MOST_SKIPPED or (is_last and row == len(steps)):
        count = (
            "the only step" if len(steps) == 1 else f"{row} steps in a row, to step {len(steps)}"
        )
        raise ConfigError(f"the {name} of {count} of the round, became NaN or infinite: {TOO_HIGH}")
    return f"step {len(steps)} of the round was skipped: its {name} is NaN or infinite"


def steps_shard(
    run: Run, round_index: int, first_step: int, steps: Sequence[Step]
) -> tuple[Shard, dict[str, float]]:
    """Store a round's optimizer steps; return where, and their means weighted by tokens.

    A figure that only some steps have, for another opd took the others, is null there and has no
    mean. Steps that were skipped count for none but `skipped`.
    """
    names = sorted({name for step in steps for name in step})
    columns = {name: pa.array([step.get(name) for step in steps], pa.float64()) for name in names}
    number = pa.array(range(first_step, first_step + len(steps)), pa.int64())
    table = pa.table({"step": number, **columns})
    data = write_table(table, {"run": run.name, "round": round_index})
    shard = content_shard(metrics_folder(run.name), data, rows=len(steps), tokens=0)
    run.storage.put(shard.key, data)
    means = _means([name for name in names if name != "skipped"], applied(steps))
    return shard, means | _means(["skipped"], steps)


def _means(names: Sequence[str], steps: Sequence[Step]) -> dict[str, float]:
    """Return the means of figures that all of some steps have, weighted by tokens."""
    if not steps:
        return {}
    tokens = np.array([step["tokens"] for step in steps], dtype=np.float64)
    return {
        name: float(np.average(values, weights=tokens))
        for name in names
        if name != "tokens"
        and not np.isnan(values := np.array([s.get(name) for s in steps], dtype=np.float64)).any()
    }


def drew_its_own(run: Run) -> bool:
    """Return whether a round's samples are draws from the very student that is trained on them."""
    stale = run.config.train.max_staleness > 0 or run.config.is_supervised
    return run.config.rollout.is_whole and not stale


def check_first_step(
    run: Run, plan: RolloutPlan | None, rollout_kl: float | None, *, vocab_size: int
) -> None:
    """Make sure that the learner says of a round's samples what the rollout said.

    Args:
        run: the run.
        plan: of the round's rollout.
        rollout_kl: KL of rollout to learner at the first step, in nats per token.
        vocab_size: ids that the learner has logits for.

    Raises:
        DataError: it differs by more than rounding.
    """
    train = run.config.train
    dropped = train.model_dropout or (train.lora is not None and train.lora.dropout > 0.0)
    if rollout_kl is None or plan is None or dropped or not drew_its_own(run):
        return
    # where a tokenizer fills no more than a part of a padded vocabulary, the rest is never drawn
    drawn = plan.sampling.get("vocab_size") or vocab_size
    exact = drawn >= vocab_size and (train.dtype, run.config.student.dtype) == ("float32",) * 2
    limit = first_step_limit(exact=exact) if train.max_rollout_kl is None else train.max_rollout_kl
    if not rollout_kl <= limit:
        padded = (
            f" The tokenizer has {drawn} of the model's {vocab_size} ids, and the others are never "
            "drawn: a model that gives them mass, as one of random weights does, is such a one."
        )
        raise DataError(
            f"round {plan.round}: before its first update the learner is {rollout_kl:.3g} nats per "
            f"token (rollout_kl) away from what the rollout drew from, with the same weights; at "
            f"most {limit:.3g} would pass for rounding. Nothing of this step was saved. Settings "
            "of the model that act in training alone, such as dropout, or of the rollout's engine "
            "are the usual cause: `opd doctor --drift` compares the engines."
            f"{padded if drawn < vocab_size else ''} Allow it with train.max_rollout_kl"
        )
