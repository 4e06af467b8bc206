"""Rollouts and scores of a round as lazy polars frames.

Promises: shards are read one after the other and verified, each when it is its turn; only columns
that are asked for are decoded of rollouts; errors come as opd raises them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from polars.io.plugins import register_io_source

from pipeline.runs.run import Run, rollout_command
from pipeline.shards.rollouts import OWN_SAMPLE, read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest
from schemas.records.shards import Shard
from schemas.tables import ROLLOUT, SCORES

Columns = Sequence[str] | None
Part = Callable[[Columns], pa.Table]
"""Reads a shard, or some columns of it."""

NAMES = ("sequence_id", "prompt_id")
"""Columns of the rollout that stand before those of scores, so that rows can be joined."""

SCORED = pa.schema([*(ROLLOUT.field(name) for name in NAMES), *SCORES])


def rollouts(run: Run, round_index: int, *, teacher: str | None) -> pl.LazyFrame:
    """Return what a round sampled, a row for each sequence.

    Raises:
        ConfigError: nothing is sampled yet.
    """
    manifest = sampled(run, round_index, teacher)
    parts = [partial(_rollout, run.storage, unit.shard) for unit in manifest.units]
    return _frame(parts, ROLLOUT)


def scores(run: Run, round_index: int, *, teacher: str) -> pl.LazyFrame:
    """Return what a teacher says of a round, a row for each sequence that it scored.

    Raises:
        ConfigError: nothing is scored by it.
        DataError: the scores are of other units than the rollout.
    """
    rollout, manifest = sampled(run, round_index, None), scored(run, round_index, teacher)
    shards = {unit.unit: unit.shard for unit in manifest.units}
    if shards.keys() != {unit.unit for unit in rollout.units}:
        raise DataError(
            f"teacher {teacher} scored {len(shards)} units of round {round_index}, of which "
            f"{len(rollout.units)} are sampled: run `opd score --round {round_index}` again"
        )
    parts = [
        partial(_scores, run.storage, manifest, unit.shard, shards[unit.unit])
        for unit in rollout.units
    ]
    return _frame(parts, SCORED)


def sampled(run: Run, round_index: int, teacher: str | None) -> RolloutManifest:
    """Return the manifest of what a round sampled, or a teacher in it.

    Raises:
        ConfigError: it is not there.
    """
    found = run.rollout(round_index, teacher)
    if found is None:
        raise ConfigError(
            f"run {run.name}: round {round_index} has no finished samples"
            f"{f' of teacher {teacher!r}' if teacher else ''}: run "
            f"`{rollout_command(round_index, teacher)}` first"
        )
    return found


def scored(run: Run, round_index: int, teacher: str) -> ScoreManifest:
    """Return the manifest of a teacher's scores of a round.

    Raises:
        ConfigError: it is not there.
    """
    if teacher not in run.config.teachers:
        known = ", ".join(run.config.teachers)
        raise ConfigError(f"run {run.name} has no teacher {teacher!r}; it has {known}")
    found = run.score(round_index, teacher)
    if found is None:
        raise ConfigError(
            f"run {run.name}: round {round_index} is not scored by teacher {teacher!r}: run "
            f"`opd score --round {round_index}` first"
        )
    return found


def _rollout(storage: Storage, shard: Shard, columns: Columns) -> pa.Table:
    whole = columns is None or any(name in OWN_SAMPLE for name in columns)
    return read_rollout(storage, shard, columns=None if whole else columns)


def _scores(
    storage: Storage, manifest: ScoreManifest, rollout: Shard, shard: Shard, columns: Columns
) -> pa.Table:
    """Return scores of a unit beside the names of the rows that they are of."""
    table = read_scores(storage, shard, scorer=manifest.scorer)
    if columns is not None and not set(columns).intersection(NAMES):
        return table
    names = ("teacher", "sequence_digest", *NAMES)
    rows = read_rollout(storage, rollout, columns=names)
    rows = rows.filter(pc.equal(rows["teacher"], manifest.teacher))
    if rows["sequence_digest"].to_pylist() != table["sequence_digest"].to_pylist():
        raise DataError(
            f"{storage.url(shard.key)} does not score the sequences of its rollout shard, row by "
            "row: `opd score --only-invalid` makes it anew"
        )
    for name in NAMES:
        table = table.append_column(ROLLOUT.field(name), rows[name])
    return table


def _frame(parts: Sequence[Part], schema: pa.Schema) -> pl.LazyFrame:
    empty = pl.from_arrow(schema.empty_table())
    assert isinstance(empty, pl.DataFrame)

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        for part in parts:
            if left is not None and left <= 0:
                return
            frame = pl.from_arrow(part(with_columns).slice(0, left))
            assert isinstance(frame, pl.DataFrame)
            left = None if left is None else left - frame.height
            frame = frame.select(with_columns or schema.names)
            yield frame if predicate is None else frame.filter(predicate)

    return register_io_source(read, schema=empty.schema)
