"""What a call of a stage reports at its end: a result, and how long it took."""

import uuid
from dataclasses import dataclass

import pyarrow as pa

from pipeline.runs.figures import Figures, TrainFigures
from pipeline.runs.run import Run
from pipeline.shards.parquet import read_table, write_table
from schemas.keys import time_key, time_of, timed_call, times_folder
from schemas.tables import check_table

TIMES = pa.schema([pa.field("stage", pa.string()), pa.field("seconds", pa.float64())])
"""What is read of the times of calls."""


def stage_seconds(run: Run, round_index: int) -> dict[str, float]:
    """Return the seconds that each stage of a round took, summed over all calls."""
    totals: dict[str, float] = {}
    folder = times_folder(run.name, round_index)
    for name in sorted(run.storage.names(folder)):
        told = time_of(name)
        for stage, seconds in [told] if told else _read_times(run, f"{folder}/{name}"):
            totals[stage] = totals.get(stage, 0.0) + seconds
    return totals


def _read_times(run: Run, key: str) -> list[tuple[str, float]]:
    """Return stage and seconds of calls that an older opd recorded."""
    data = run.storage.get(key)
    if data is None:
        return []
    where = run.storage.url(key)
    table, _ = read_table(data, where=where, columns=TIMES.names)
    check_table(table, TIMES, where=where)
    return [(row["stage"], row["seconds"]) for row in table.to_pylist()]


@dataclass(frozen=True)
class StageResult:
    """What one call of a stage did; the fields of the CLI's JSON line."""

    stage: str
    run: str
    round: int | None
    units: int
    """Units that this call computed."""
    rows: int
    """Rows of the whole stage, where it is complete; else those of this call."""
    tokens: int
    manifest: str | None
    """Where the manifest is; None while other workers' units are missing."""
    reused_rows: int = 0
    teacher_tokens: int = 0
    """Response and prompt tokens that a teacher read in this call."""
    engine_start_s: float = 0.0
    figures: Figures | None = None
    """What else the stage tells."""


def record_time(run: Run, result: StageResult, seconds: float) -> None:
    """Store how long a call of a stage took; a call that had nothing to do leaves no trace."""
    if result.units == 0 or result.round is None:
        return
    row: dict[str, str | int | float | None] = {
        "stage": result.stage,
        "units": result.units,
        "tokens": result.tokens,
        "teacher_tokens": result.teacher_tokens,
        "seconds": seconds,
        "engine_start_s": result.engine_start_s,
    }
    if isinstance(result.figures, TrainFigures):
        row["data_wait_share"] = result.figures.data_wait_share
    data = write_table(pa.Table.from_pylist([row]), {"run": run.name, "round": result.round})
    call = timed_call(result.stage, seconds)
    key = time_key(run.name, result.round, call=call, random=uuid.uuid4().hex)
    run.storage.put(key, data)
