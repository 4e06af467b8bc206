"""Arrow schemas of the Parquet files of opd, and the checks of their shapes.

One row is one sequence. Per-token lists start at the first response token and are as long as the
response; top-k lists are flat, `tokens × k` values in rank order. Absent is null, never 0.0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.columns import check_lengths, flat_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import row_sums
from schemas.scoresignal import SCORE_COLUMNS, Kind, ScoreColumn, Signal

SCHEMA_VERSION = 1
"""Version of the tables and manifests that this code writes."""

LOGPROB_ROUNDING = 2.0**-10
"""Nats above 0 that rounding may leave of a log-probability; exact in 16 bits too."""

IDS = pa.list_(pa.int32())

LOGPROBS = pa.list_(pa.float32())

PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_ids", IDS, nullable=False),
        pa.field("text", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("teacher", pa.string()),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("metadata", pa.string()),
    ]
)
"""Prompts ready to sample from; `metadata` is the JSON of the free columns."""

ROLLOUT = pa.schema(
    [
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("sequence_digest", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("policy_version", pa.string(), nullable=False),
        pa.field("prompt_ids", IDS, nullable=False),
        pa.field("response_ids", IDS, nullable=False),
        pa.field("response_mask", pa.list_(pa.bool_()), nullable=False),
        pa.field("rollout_student_logprobs", LOGPROBS, nullable=False),
        pa.field("student_topk_ids", IDS),
        pa.field("student_topk_logprobs", LOGPROBS),
        pa.field("student_sample_ids", IDS),
        pa.field("student_sample_logprobs", LOGPROBS),
        pa.field("student_sample_count", IDS),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("reward", pa.float32()),
        pa.field("reference", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("text", pa.string()),
    ]
)
"""Sampled sequences; `finish_reason` is `stop` or `length`, `text` is for people only."""


def _score_field(column: ScoreColumn) -> pa.Field:
    """Return the field of a score column in memory."""
    values = pa.int32() if column.kind.is_whole else pa.float32()
    kind = pa.large_list(values) if column.large else pa.list_(values)
    return pa.field(column.name, kind, nullable=column.is_optional)


DIGEST = pa.field("sequence_digest", pa.string(), nullable=False)

SCORES = pa.schema([DIGEST, *map(_score_field, SCORE_COLUMNS)])
"""Teacher scores in memory; a codec makes stored columns of them. Log-probabilities are in nats at
temperature 1; a column is null where the signal does not have it."""


def with_absent(columns: Mapping[str, Any]) -> pa.Table:
    """Return the score table of the columns that there are, digests among them; others are null."""
    rows = len(columns[DIGEST.name])
    absent = {f.name: pa.nulls(rows, f.type) for f in SCORES if f.name not in columns}
    return pa.table({**columns, **absent}, schema=SCORES)


def check_table(table: pa.Table, schema: pa.Schema, *, where: str) -> None:
    """Make sure that a table has a schema's columns, types and no nulls where none may be.

    Raises:
        DataError: a column is missing, has another type or holds a null.
    """
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(
                f"{where}: column {field.name!r} is missing, found {table.column_names}"
            )
        column = table.column(field.name)
        if column.type != field.type:
            raise DataError(
                f"{where}: column {field.name!r} has type {column.type}, expected {field.type}"
            )
        if not field.nullable and column.null_count:
            raise DataError(f"{where}: column {field.name!r} holds {column.null_count} nulls")
        if any(_values_of(chunk).null_count for chunk in column.chunks):
            raise DataError(f"{where}: lists of column {field.name!r} hold nulls")


def _values_of(chunk: pa.Array) -> pa.Array:
    """Return the values of lists; nothing of what is no list."""
    listed = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
    return chunk.values if listed else chunk.slice(0, 0)


def check_rollout(table: pa.Table, *, where: str) -> None:
    """Make sure that a rollout table is well-formed: schema, lengths and finite log-probabilities.

    Raises:
        DataError: as `check_table`; lengths differ; an empty prompt or response; a value is not
            a log-probability.
    """
    check_table(table, ROLLOUT, where=where)
    tokens = list_lengths(table, "response_ids")
    if (tokens == 0).any() or (list_lengths(table, "prompt_ids") == 0).any():
        raise DataError(f"{where}: a row has an empty prompt or response")
    for name in ("response_mask", "rollout_student_logprobs"):
        check_lengths(table, name, tokens, where=where)
    check_logprobs(table, "rollout_student_logprobs", where=where)
    if not np.isfinite(flat_values(table, "rollout_student_logprobs")).all():
        raise DataError(f"{where}: an id was drawn whose log-probability is -inf: that cannot be")


def check_scores(table: pa.Table, *, signal: Signal, where: str) -> None:
    """Make sure that a score table is well-formed: schema, lengths by its signal, real numbers.

    Raises:
        DataError: as `check_table`; lengths or counts differ; NaN or a positive log-probability.
    """
    check_table(table, SCORES, where=where)
    present = signal.columns
    for column in SCORE_COLUMNS:
        _check_present(table, column.name, column in present, where=where)
    tokens = list_lengths(table, "token_logprob")
    counted: dict[str | None, Any] = {
        column.name: _check_counts(table, column, tokens, column.most(signal), where=where)
        for column in present
        if column.most is not None
    }
    for column in present:
        if column.most is None:
            lengths = counted.get(column.counted_by, tokens * column.per_token(signal))
            check_lengths(table, column.name, lengths, where=where)
        if column.kind.is_logprob:
            check_logprobs(table, column.name, where=where)
        if column.kind is Kind.FLOATS and np.isnan(flat_values(table, column.name)).any():
            raise DataError(f"{where}: {column.name!r} holds NaN")


def check_ids(table: pa.Table, vocab_size: int, *, where: str) -> None:
    """Make sure that every id of a score table is one of the vocabulary's.

    Raises:
        DataError: an id is negative or too large.
    """
    for column in SCORE_COLUMNS:
        if column.kind is not Kind.IDS or table.column(column.name).null_count:
            continue
        values = flat_values(table, column.name)
        if values.view(np.uint32).max(initial=0) >= vocab_size:  # a negative one is large
            raise DataError(f"{where}: {column.name!r} holds an id outside [0, {vocab_size})")


def _check_present(table: pa.Table, name: str, expected: bool, *, where: str) -> None:
    """Refuse another answer than the signal's to whether a column has values."""
    nulls = table.column(name).null_count
    if nulls != (0 if expected else table.num_rows):
        found = f"{nulls} nulls in {table.num_rows} rows"
        raise DataError(f"{where}: column {name!r} holds {found}, which its signal denies")


def _check_counts(
    table: pa.Table, column: ScoreColumn, tokens: Any, most: int, *, where: str
) -> Any:
    """Return how many values each row has of what a column counts, int64 [rows]."""
    name, values = column.name, flat_values(table, column.name)
    lengths = list_lengths(table, name) if column.adds_up else tokens
    check_lengths(table, name, lengths, where=where)
    if len(values) and not (values.min() >= column.least and values.max() <= most):
        raise DataError(f"{where}: {name!r} holds a count outside [{column.least}, {most}]")
    sums = row_sums(values, lengths)
    if not column.adds_up:
        return sums
    ends = np.cumsum(values, dtype=np.int64)
    if not np.array_equal(sums, tokens * most) or (ends % most == 0).sum() != tokens.sum():
        raise DataError(f"{where}: {name!r} does not add up to {most} draws of every token")
    return lengths


def check_logprobs(table: pa.Table, name: str, *, where: str) -> None:
    """Refuse a list column with a value that is no log-probability."""
    values = flat_values(table, name)
    if len(values) and not values.max() <= LOGPROB_ROUNDING:  # NaN is the largest of all
        found = values[~(values <= LOGPROB_ROUNDING)][0]
        raise DataError(f"{where}: {name!r} holds {found}, which is no log-probability")
