"""Arrow schemas of the Parquet files of opd, and the checks of their shapes.

One row is one sequence. Per-token lists start at the first response token and are as long as the
response; top-k lists are flat, `tokens × k` values in rank order. Absent is null, never 0.0.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from schemas.columns import flat_values, list_lengths
from schemas.errors import DataError
from schemas.scoresignal import Signal

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
        pa.field("topk_logprobs", pa.large_list(pa.float32()), nullable=False),
        pa.field("topk_count", IDS),
        pa.field("tail_logprobs", LOGPROBS, nullable=False),
        pa.field("token_logprob", LOGPROBS, nullable=False),
        pa.field("token_rank", IDS, nullable=False),
        pa.field("entropy", LOGPROBS),
        pa.field("candidate_ids", IDS),
        pa.field("candidate_logprobs", LOGPROBS),
        pa.field("draw_ids", IDS),
        pa.field("draw_counts", IDS),
    ]
)
"""Teacher scores in memory; a codec makes stored columns of them. Log-probabilities are in nats at
temperature 1; a column is null where the signal does not have it."""


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


def check_scores(table: pa.Table, *, signal: Signal, where: str) -> None:
    """Make sure that a score table is well-formed: schema, lengths by its signal, real numbers.

    Raises:
        DataError: as `check_table`; lengths or counts differ; NaN or a positive log-probability.
    """
    check_table(table, SCORES, where=where)
    tokens = list_lengths(table, "token_logprob")
    _check_lengths(table, "token_rank", tokens, where=where)
    if _check_present(table, "entropy", signal.entropy, where=where):
        _check_lengths(table, "entropy", tokens, where=where)
    _check_lengths(table, "tail_logprobs", tokens * signal.tail_buckets, where=where)
    kept = tokens * signal.k
    if _check_present(table, "topk_count", signal.ragged, where=where):
        kept = _row_sums(table, "topk_count", tokens, high=signal.k, where=where)
    for name in ("topk_ids", "topk_logprobs"):
        _check_lengths(table, name, kept, where=where)
    for name in ("candidate_ids", "candidate_logprobs"):
        if _check_present(table, name, signal.candidates > 0, where=where):
            _check_lengths(table, name, tokens * signal.candidates, where=where)
    _check_draws(table, tokens, signal.draws, where=where)
    for name in ("topk_logprobs", "tail_logprobs", "token_logprob", "candidate_logprobs"):
        if not table.column(name).null_count:
            _check_logprobs(table, name, where=where)


def _check_draws(table: pa.Table, tokens: Any, draws: int, *, where: str) -> None:
    present = _check_present(table, "draw_counts", draws > 0, where=where)
    if not present or not _check_present(table, "draw_ids", True, where=where):
        return
    counts = list_lengths(table, "draw_counts")
    _check_lengths(table, "draw_ids", counts, where=where)
    sums = _row_sums(table, "draw_counts", counts, high=draws, where=where)
    ends = np.cumsum(flat_values(table, "draw_counts"), dtype=np.int64)
    if not np.array_equal(sums, tokens * draws) or np.count_nonzero(ends % draws == 0) != sum(
        tokens
    ):
        raise DataError(f"{where}: 'draw_counts' does not add up to {draws} draws of every token")


def _check_present(table: pa.Table, name: str, expected: bool, *, where: str) -> bool:
    """Return whether a column has values; refuse another answer than the signal's."""
    nulls = table.column(name).null_count
    if nulls != (0 if expected else table.num_rows):
        found = f"{nulls} nulls in {table.num_rows} rows"
        raise DataError(f"{where}: column {name!r} holds {found}, which its signal denies")
    return expected


def _row_sums(table: pa.Table, name: str, lengths: Any, *, high: int, where: str) -> Any:
    """Return the sum of each row's counts, int64 [rows]; refuse counts outside [1, high]."""
    _check_lengths(table, name, lengths, where=where)
    counts = flat_values(table, name)
    if len(counts) and not (counts.min() >= 1 and counts.max() <= high):
        raise DataError(f"{where}: {name!r} holds a count outside [1, {high}]")
    sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return sums[ends] - sums[ends - lengths]


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
    if len(values) and not values.max() <= LOGPROB_ROUNDING:  # NaN is the largest of all
        found = values[~(values <= LOGPROB_ROUNDING)][0]
        raise DataError(f"{where}: {name!r} holds {found}, which is no log-probability")
