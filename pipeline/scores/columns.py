"""Between an engine's rectangular arrays and the flat columns of a score table. Pure.

Arrays are padded where a position keeps fewer top-k ids (-1, -inf) and list a drawn id as often as
it was drawn; columns hold what is kept, with counts. Shapes: T tokens, K top-k, R rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scores.scores import Scores
from schemas.columns import flat_values, list_array, list_lengths
from schemas.ragged import row_sums
from schemas.scoresignal import Signal
from schemas.tables import SCORES

Counts = NDArray[np.int64]


def table_of(digests: list[str], scores: Scores, lengths: Counts, signal: Signal) -> pa.Table:
    """Return the score table of some sequences.

    Args:
        digests: sequence digest of each row.
        scores: of all rows joined.
        lengths: int64 [R] tokens of each row.
        signal: what the scores hold.
    """
    flat = {
        "tail_logprobs": (scores.tail.reshape(-1), lengths * signal.tail_buckets),
        "token_logprob": (scores.token_logprob, lengths),
        "token_rank": (scores.token_rank, lengths),
        **_topk(scores, lengths, signal),
        **_draws(scores, lengths),
    }
    if scores.entropy is not None:
        flat["entropy"] = scores.entropy, lengths
    for name in ("candidate_ids", "candidate_logprobs"):
        values = getattr(scores, name)
        if values is not None:
            flat[name] = values.reshape(-1), lengths * values.shape[1]
    columns = {n: list_array(v, counts, SCORES.field(n).type) for n, (v, counts) in flat.items()}
    absent = {f.name: pa.nulls(len(lengths), f.type) for f in SCORES if f.name not in flat}
    return pa.table({**absent, **columns, "sequence_digest": digests}, schema=SCORES)


def scores_of(table: pa.Table) -> Scores:
    """Return the arrays of a checked score table, rows joined."""
    tokens = int(list_lengths(table, "token_logprob").sum())
    tail = flat_values(table, "tail_logprobs")
    ids, logprobs = flat_values(table, "topk_ids"), flat_values(table, "topk_logprobs")
    if not table.column("topk_count").null_count:
        counts = flat_values(table, "topk_count")
        ids, logprobs = _padded(ids, counts, -1), _padded(logprobs, counts, -np.inf)
    further: dict[str, Any] = {}
    if not table.column("entropy").null_count:
        further["entropy"] = flat_values(table, "entropy")
    for name in ("candidate_ids", "candidate_logprobs", "draw_ids"):
        if not table.column(name).null_count:
            values = flat_values(table, name)
            if name == "draw_ids":
                values = np.repeat(values, flat_values(table, "draw_counts"))
            further[name] = _rectangle(values, tokens)
    return Scores(
        topk_ids=_rectangle(ids, tokens),
        topk_logprobs=_rectangle(logprobs, tokens),
        tail=tail if len(tail) == tokens else _rectangle(tail, tokens),
        token_logprob=flat_values(table, "token_logprob"),
        token_rank=flat_values(table, "token_rank"),
        **further,
    )


def _topk(scores: Scores, lengths: Counts, signal: Signal) -> dict[str, tuple[Any, Counts]]:
    ids, logprobs = scores.topk_ids, scores.topk_logprobs
    if not signal.ragged:
        counts = lengths * signal.k
        return {
            "topk_ids": (ids.reshape(-1), counts),
            "topk_logprobs": (logprobs.reshape(-1), counts),
        }
    kept = ids >= 0
    count = kept.sum(axis=1)
    per_row = row_sums(count, lengths)
    return {
        "topk_ids": (ids[kept], per_row),
        "topk_logprobs": (logprobs[kept], per_row),
        "topk_count": (count, lengths),
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


def _padded(values: NDArray[Any], counts: NDArray[Any], fill: float) -> NDArray[Any]:
    kept = np.arange(counts.max(initial=0)) < counts[:, None]
    rows = np.full(kept.shape, fill, dtype=values.dtype)
    rows[kept] = values
    return rows


def _rectangle(values: NDArray[Any], tokens: int) -> NDArray[Any]:
    return values.reshape(tokens, -1 if tokens else 0)
