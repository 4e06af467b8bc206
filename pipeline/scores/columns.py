"""Between an engine's rectangular arrays and the flat columns of a score table. Pure.

Arrays are padded where a position keeps fewer ids (-1, -inf) and list a drawn id as often as it was
drawn; columns hold what is kept, with counts. Shapes: T tokens, N ids of a token, R rows.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scores.inclusion import whole_again
from pipeline.scores.scores import Scores
from schemas.columns import flat_values, list_array, list_lengths
from schemas.ragged import padded, row_sums
from schemas.scoresignal import SCORE_COLUMNS, ScoreColumn, Signal
from schemas.tables import SCORES, with_absent

Counts = NDArray[np.int64]


def table_of(digests: list[str], scores: Scores, lengths: Counts, signal: Signal) -> pa.Table:
    """Return the score table of some sequences.

    Args:
        digests: sequence digest of each row.
        scores: of all rows joined.
        lengths: int64 [R] tokens of each row.
        signal: what the scores hold.
    """
    arrays = scores.arrays()
    flat = {**_ranked("topk", arrays, lengths, signal), **_draws(scores, lengths)}
    for name in ("sample", "candidate"):
        flat |= _ranked(name, arrays, lengths, signal)
    for column in signal.columns:
        values = arrays.get(column.name)
        if column.name not in flat and values is not None:
            flat[column.name] = values.reshape(-1), lengths * math.prod(values.shape[1:])
    columns = {n: list_array(v, counts, SCORES.field(n).type) for n, (v, counts) in flat.items()}
    return with_absent({"sequence_digest": pa.array(digests, pa.string()), **columns})


def scores_of(table: pa.Table) -> Scores:
    """Return the arrays of a checked score table, rows joined.

    A sample's certain ids are scaled by what rounding took from them, so that its threshold follows
    from its masses as it did before (`inclusion.log_thresholds`).
    """
    tokens = int(list_lengths(table, "token_logprob").sum())
    there = [column for column in SCORE_COLUMNS if not table.column(column.name).null_count]
    counts = {c.name: (c, flat_values(table, c.name)) for c in there if c.most is not None}
    arrays = {}
    for column in there:
        if column.most is not None:
            continue
        values = flat_values(table, column.name)
        if column.counted_by in counts:
            values = _uncounted(values, column, *counts[column.counted_by])
        narrow = not column.wide and len(values) == tokens
        arrays[column.name] = values if narrow else _rectangle(values, tokens)
    if "topk_ids" not in arrays:
        arrays["topk_ids"] = np.empty((tokens, 0), np.int32)
        arrays["topk_logprobs"] = np.empty((tokens, 0), np.float32)
    return whole_again(Scores.of(arrays))


def _ranked(
    name: str, arrays: Mapping[str, NDArray[Any]], lengths: Counts, signal: Signal
) -> dict[str, tuple[Any, Counts]]:
    """Return the columns of ids and log-probabilities, with counts where tokens may have fewer."""
    columns = {c.name: c.per_token(signal) for c in signal.columns}
    ids_name, logprobs_name, count_name = (f"{name}_{x}" for x in ("ids", "logprobs", "count"))
    if ids_name not in columns:
        return {}
    ids, logprobs = arrays[ids_name], arrays[logprobs_name]
    if count_name not in columns:
        counts = lengths * columns[ids_name]
        return {
            ids_name: (ids.reshape(-1), counts),
            logprobs_name: (logprobs.reshape(-1), counts),
        }
    kept = ids >= 0
    count = kept.sum(axis=1)
    per_row = row_sums(count, lengths)
    return {
        ids_name: (ids[kept], per_row),
        logprobs_name: (logprobs[kept], per_row),
        count_name: (count, lengths),
    }


def _draws(scores: Scores, lengths: Counts) -> dict[str, tuple[Any, Counts]]:
    """Return drawn ids once each, and how often each was drawn."""
    if scores.draw_ids is None:
        return {}
    first = np.ones(scores.draw_ids.shape, dtype=bool)
    first[:, 1:] = scores.draw_ids[:, 1:] != scores.draw_ids[:, :-1]
    per_row = row_sums(first.sum(axis=1), lengths)
    counts = np.diff(np.flatnonzero(first), append=first.size)
    return {"draw_ids": (scores.draw_ids[first], per_row), "draw_counts": (counts, per_row)}


def _uncounted(
    values: NDArray[Any], column: ScoreColumn, counting: ScoreColumn, counts: NDArray[Any]
) -> NDArray[Any]:
    """Return as many values for each token as for every other one, tokens joined."""
    if counting.adds_up:
        return np.repeat(values, counts)
    return padded(values, counts, fill=-1 if column.kind.is_whole else -np.inf)


def _rectangle(values: NDArray[Any], tokens: int) -> NDArray[Any]:
    return values.reshape(tokens, -1 if tokens else 0)
