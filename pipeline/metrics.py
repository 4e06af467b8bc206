"""Metrics: one row per optimizer step, and one row per call of a stage with its time.

The steps are a part of a round's result and depend on it alone; the times are not. Times are found
by listing one round's folder: they are for people, and nothing else depends on them.
"""

import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.commit import content_shard
from pipeline.parquet import read_table, write_table
from pipeline.run import Run
from pipeline.stage import StageResult
from schemas.manifest import Shard

Step = dict[str, float | None]


def steps_shard(
    run: Run, round_index: int, first_step: int, steps: Sequence[Step]
) -> tuple[Shard, dict[str, float]]:
    """Store a round's optimizer steps; return where, and their means weighted by tokens."""
    names = sorted(steps[0])
    columns = {name: pa.array([step[name] for step in steps], pa.float64()) for name in names}
    number = pa.array(range(first_step, first_step + len(steps)), pa.int64())
    table = pa.table({"step": number, **columns})
    data = write_table(table, {"run": run.name, "round": round_index})
    shard = content_shard(f"{run.folder}/metrics", data, rows=len(steps), tokens=0)
    run.storage.put(shard.key, data)
    tokens = np.array([step["tokens"] for step in steps], dtype=np.float64)
    means = {
        name: float(np.average(values, weights=tokens))
        for name in names
        if name != "tokens"
        and not np.isnan(values := columns[name].to_numpy(zero_copy_only=False)).any()
    }
    return shard, means


def record_time(run: Run, result: StageResult, seconds: float) -> None:
    """Store how long a call of a stage took; a call that had nothing to do leaves no trace."""
    if result.units == 0 or result.round is None:
        return
    row = {
        "stage": result.stage,
        "units": result.units,
        "tokens": result.tokens,
        "teacher_tokens": result.teacher_tokens,
        "seconds": seconds,
        "engine_start_s": result.engine_start_s,
    }
    data = write_table(pa.Table.from_pylist([row]), {"run": run.name, "round": result.round})
    run.storage.put(f"{_times(run, result.round)}/{result.stage}-{uuid.uuid4().hex}.parquet", data)


def stage_seconds(run: Run, round_index: int) -> dict[str, float]:
    """Return the seconds that each stage of a round took, summed over all calls."""
    totals: dict[str, float] = {}
    folder = _times(run, round_index)
    for name in sorted(run.storage.names(folder)):
        data = run.storage.get(f"{folder}/{name}")
        if data is None:
            continue
        table, _ = read_table(data, where=run.storage.url(f"{folder}/{name}"))
        row = table.to_pylist()[0]
        totals[row["stage"]] = totals.get(row["stage"], 0.0) + row["seconds"]
    return totals


def _times(run: Run, round_index: int) -> str:
    return f"{run.folder}/metrics/times/{round_index:04d}"
