"""What a call of a stage reports at its end: a result, how long it took, or why it failed.

Promises: an error goes on as it came, also where the store takes no record of it; a run that has
not begun stays as it is.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.figures import Figures, TrainFigures
from pipeline.runs.run import Run
from pipeline.shards.parquet import read_table, write_table
from pipeline.store.faults import known_error
from pipeline.store.records import find_record
from schemas.errors import DataError, IdentityError, OpdError
from schemas.foreign import excerpt, without_secrets
from schemas.keys import failure_key, run_key, time_key, time_of, timed_call, times_folder
from schemas.records.runs import FailureRecord
from schemas.tables import check_table

CALLS = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("units", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("teacher_tokens", pa.int64()),
        pa.field("engine_start_s", pa.float64()),
        pa.field("data_wait_share", pa.float64()),
    ]
)
"""What is read of the calls of stages; an older opd told less."""


def stage_seconds(run: Run, round_index: int) -> dict[str, float]:
    """Return the seconds that each stage of a round took, summed over all calls.

    Names tell them, so that one listing is enough; an older opd wrote them into the objects alone.
    """
    totals: dict[str, float] = {}
    for name in _times(run, round_index):
        told = time_of(name)
        for stage, seconds in [told] if told else _told_within(run, round_index, name):
            totals[stage] = totals.get(stage, 0.0) + seconds
    return totals


def stage_calls(run: Run, round_index: int) -> pa.Table:
    """Return a row of `CALLS` for each call of a round's stages; null is what it did not tell.

    Raises:
        DataError: an object is misshapen.
    """
    tables = [_call(run, round_index, name) for name in _times(run, round_index)]
    return pa.concat_tables([CALLS.empty_table(), *tables], promote_options="default")


def _times(run: Run, round_index: int) -> list[str]:
    return sorted(run.storage.names(times_folder(run.name, round_index)))


def _told_within(run: Run, round_index: int, name: str) -> list[tuple[str, float]]:
    rows = _call(run, round_index, name).to_pylist()
    return [(row["stage"], row["seconds"]) for row in rows]


def _call(run: Run, round_index: int, name: str) -> pa.Table:
    key = f"{times_folder(run.name, round_index)}/{name}"
    data = run.storage.get(key)
    if data is None:
        return CALLS.empty_table()
    where = run.storage.url(key)
    table, _ = read_table(data, where=where, columns=CALLS.names)
    told = [f for f in CALLS if not f.nullable or _is_told(table, f.name)]
    check_table(table, pa.schema(told), where=where)
    _check_finite(table.select([f.name for f in told if f.type == pa.float64()]), where)
    return table.select([f.name for f in told]).cast(pa.schema(told))


def _check_finite(table: pa.Table, where: str) -> None:
    for name in table.column_names:
        if not pc.all(pc.is_finite(table[name])).as_py():
            raise DataError(
                f"{where}: {name!r} holds what is no time: restore the object, or delete it, which "
                "costs nothing but the time that it tells"
            )


def _is_told(table: pa.Table, name: str) -> bool:
    return name in table.column_names and not pa.types.is_null(table.schema.field(name).type)


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


# --- what a call that failed leaves ---

BUG = 1
"""Exit code of an error that nobody foresaw."""


P = ParamSpec("P")
R = TypeVar("R")


class OfRound(Protocol):
    """Something that a stage works on."""

    @property
    def round_index(self) -> int | None:
        """Round it belongs to; None for what is graded before the first."""


T = TypeVar("T", bound=int | OfRound)
StageCall = Callable[Concatenate[Run, T, P], R]


def keeps_failure(stage: str) -> Callable[[StageCall[T, P, R]], StageCall[T, P, R]]:
    """Return a decorator of a stage: where its call fails, a record says why.

    Of the processes of a learner the first one records: others fail because it did, or end with it.
    """

    def kept(call: StageCall[T, P, R]) -> StageCall[T, P, R]:
        @wraps(call)
        def calling(run: Run, work: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(run, work, *args, **kwargs)
            except Exception as error:
                round_index = work if isinstance(work, int) else work.round_index
                if round_index is not None and os.environ.get("RANK", "0") == "0":
                    with suppress(OpdError):
                        _keep(run, round_index, stage, error)
                raise

        return calling

    return kept


def last_failure(run: Run, round_index: int, stage: str) -> FailureRecord | None:
    """Return why a stage failed when it last did, None where it never did."""
    key = failure_key(run.stage_folder(round_index, stage))
    return find_record(run.storage, key, FailureRecord)


def _keep(run: Run, round_index: int, stage: str, error: Exception) -> None:
    known = error if isinstance(error, OpdError) else known_error(error)
    if isinstance(known, IdentityError) or not run.storage.exists(run_key(run.name)):
        return  # the run is somebody else's, or has not begun
    text = str(known) if known else f"{type(error).__name__}: {error}"
    record = FailureRecord(
        run=run.name,
        round=round_index,
        stage=stage,
        exit_code=known.exit_code if known else BUG,
        message=excerpt(without_secrets(text)),
    )
    run.storage.put(failure_key(run.stage_folder(round_index, stage)), record.to_bytes())
