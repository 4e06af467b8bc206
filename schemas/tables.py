"""Arrow schemas of the Parquet files of opd, and the checks of their shapes.

One row is one sequence. Per-token lists start at the first response token and are as long as the
response; top-k lists are flat, `tokens × k` values in rank order. Absent is null, never 0.0.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import DataError

SCHEMA_VERSION = 1
"""Version of the tables and manifests that this code writes."""

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

SCORES = pa.schema(
    [
        pa.field("sequence_digest", pa.string(), nullable=False),
        pa.field("topk_ids", pa.large_list(pa.int32()), nullable=False),
        pa.field("topk_logprobs", pa.large_list(pa.float16()), nullable=False),
        pa.field("tail_logprobs", LOGPROBS, nullable=False),
        pa.field("token_logprob", LOGPROBS, nullable=False),
        pa.field("token_rank", IDS, nullable=False),
        pa.field("entropy", LOGPROBS, nullable=False),
    ]
)
"""Teacher scores of the codec `typed-v1`; all log-probabilities in nats at temperature 1."""

EXACT_COLUMNS = ("tail_logprobs", "token_logprob", "entropy")
"""Per-token float32 columns of a score table."""


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
        _check_lengths(table, name, tokens, where=where)
    _check_logprobs(table, "rollout_student_logprobs", where=where)


def check_scores(table: pa.Table, *, k: int, where: str) -> None:
    """Make sure that a score table is well-formed: schema, lengths, k values a token, real numbers.

    Raises:
        DataError: as `check_table`; lengths differ; NaN or a positive log-probability.
    """
    check_table(table, SCORES, where=where)
    tokens = list_lengths(table, "token_logprob")
    for name in ("tail_logprobs", "token_rank", "entropy"):
        _check_lengths(table, name, tokens, where=where)
    for name in ("topk_ids", "topk_logprobs"):
        _check_lengths(table, name, tokens * k, where=where)
    for name in ("topk_logprobs", "tail_logprobs", "token_logprob"):
        _check_logprobs(table, name, where=where)


def list_lengths(table: pa.Table, name: str) -> Any:
    """Return the number of values in each row of a list column, int64 [rows]."""
    lengths = pc.list_value_length(table.column(name)).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, dtype=np.int64)


def flat_values(table: pa.Table, name: str) -> Any:
    """Return all values of a list column, rows joined, as one numpy array (maybe read-only)."""
    column = table.column(name).combine_chunks()
    return pc.list_flatten(column).to_numpy(zero_copy_only=False)


def _check_lengths(table: pa.Table, name: str, expected: Any, *, where: str) -> None:
    found = list_lengths(table, name)
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {row} has {found[row]} values in {name!r}, expected {expected[row]}"
        )


def _check_logprobs(table: pa.Table, name: str, *, where: str) -> None:
    values = flat_values(table, name)
    bad = np.isnan(values) | (values > 1e-3)
    if bad.any():
        found = values[bad][0]
        raise DataError(f"{where}: {name!r} holds {found}, which is no log-probability")


def list_array(values: Any, lengths: Any, kind: pa.DataType) -> pa.Array:
    """Return a list column from joined values and the number of values in each row.

    Args:
        values: numpy array, cast to the list's value type.
        lengths: int64 [rows], summing to `len(values)`.
        kind: list or large-list type.
    """
    large = pa.types.is_large_list(kind)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64 if large else np.int32)
    make = pa.LargeListArray if large else pa.ListArray
    flat = pa.array(np.ascontiguousarray(values), type=kind.value_type)
    return make.from_arrays(pa.array(offsets), flat)


def list_rows(table: pa.Table, name: str) -> list[Any]:
    """Return a list column as one numpy array per row (views, maybe read-only)."""
    ends = np.cumsum(list_lengths(table, name))[:-1]
    return np.split(flat_values(table, name), ends) if table.num_rows else []
