"""Figures of optimizer steps: of one step, and stored for a round."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.learner.batches import StepPlan
from pipeline.runs.run import Run
from pipeline.shards.parquet import write_table
from pipeline.store.commit import content_shard
from schemas.errors import ConfigError
from schemas.keys import metrics_folder
from schemas.records.shards import Shard

TOO_HIGH = (
    "lower train.learning_rate or train.max_grad_norm, or raise train.warmup_steps, under another "
    "run.name. Nothing of this step was saved: the states and checkpoints before it stand"
)
"""What to do about numbers that ran away; targets are checked before they are trained on."""

Step = dict[str, float | None]


def step_metrics(
    totals: dict[str, float], plan: StepPlan, norm: float | None, learning_rate: float
) -> Step:
    """Return the figures of a step from the sums over its tokens.

    Raises:
        ConfigError: the loss or the gradient norm is no number; nothing was saved of such a step.
    """
    loss, weight = totals.pop("loss"), totals.pop("weight")
    length = 0.0 if norm is None else float(norm)
    if length < 0:  # DeepSpeed's word for a norm that is no number
        length = math.nan
    for name, value in (("loss", loss), ("gradient norm", length)):
        if not math.isfinite(value):
            raise ConfigError(f"the {name} became {value}: {TOO_HIGH}")
    means = {name: total / max(weight, 1e-9) for name, total in totals.items()}
    return {
        "loss": loss / max(plan.trained_tokens, 1),
        "tokens": float(plan.trained_tokens),
        "learning_rate": learning_rate,
        "grad_norm": None if norm is None else float(norm),
        **means,
    }


def steps_shard(
    run: Run, round_index: int, first_step: int, steps: Sequence[Step]
) -> tuple[Shard, dict[str, float]]:
    """Store a round's optimizer steps; return where, and their means weighted by tokens.

    A figure that only some steps have, for another opd took the others, is null there and has no
    mean.
    """
    names = sorted({name for step in steps for name in step})
    columns = {name: pa.array([step.get(name) for step in steps], pa.float64()) for name in names}
    number = pa.array(range(first_step, first_step + len(steps)), pa.int64())
    table = pa.table({"step": number, **columns})
    data = write_table(table, {"run": run.name, "round": round_index})
    shard = content_shard(metrics_folder(run.name), data, rows=len(steps), tokens=0)
    run.storage.put(shard.key, data)
    tokens = np.array([step["tokens"] for step in steps], dtype=np.float64)
    means = {
        name: float(np.average(values, weights=tokens))
        for name in names
        if name != "tokens"
        and not np.isnan(values := columns[name].to_numpy(zero_copy_only=False)).any()
    }
    return shard, means
