"""The student's own ids of each position, which a teacher scores too. Pure.

They are its likeliest ids, then those of its sample; a teacher calls all of them candidates.
Shapes: T tokens of a row, N candidates.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.columns import Ids, flat_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import padded
from schemas.scoresignal import Signal

OWN = {"student_topk_ids": "rollout.candidates", "student_sample_ids": "rollout.sample"}
"""Columns of the student's own ids in a rollout, and the keys that ask for them."""

COUNT = "student_sample_count"
"""Column of how many ids of its sample a token has, where tokens have numbers of their own."""

COUNTED = "candidate_count"
"""The same in scores, of all candidates."""


def candidates_of(rows: pa.Table, signal: Signal) -> list[Ids] | None:
    """Return the student's own ids of each rollout row, int32 [T, N]; None where none are scored.

    They are -1 where a token has fewer.

    Raises:
        DataError: the rollout was sampled with another number of them.
    """
    if not signal.candidates:
        return None
    ids, tokens = _own_ids(rows, signal), list_lengths(rows, "response_ids")
    return np.split(ids, np.cumsum(tokens)[:-1]) if rows.num_rows else []


def split_candidates(scored: NDArray[Any], sample: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scored candidates in two: of the student's likeliest ids, and of its sample.

    Args:
        scored: ids or log-probabilities [T, N], as `Scores` has them.
        sample: ids of the student's sample at each token, as the rollout has them.
    """
    end = scored.shape[1] - sample
    return scored[:, :end], scored[:, end:]


def own_counts(rows: pa.Table) -> NDArray[Any] | None:
    """Return how many ids of its sample each token has, None where all have as many."""
    if COUNT not in rows.column_names or rows.column(COUNT).null_count:
        return None
    return np.asarray(flat_values(rows, COUNT))


def _own_ids(rows: pa.Table, signal: Signal) -> Ids:
    """Return the student's own ids of rollout rows, int32 [T, N], rows joined; -1 for none.

    Raises:
        DataError: the rollout was sampled with another number of them.
    """
    tokens, counts = list_lengths(rows, "response_ids"), own_counts(rows)
    parts, total = [], int(tokens.sum())
    if not total:
        return np.empty((0, signal.candidates), np.int32)
    for name in OWN:
        if rows.column(name).null_count:
            continue  # the number of ids says whether they were asked for
        if name == "student_sample_ids" and counts is not None:
            parts.append(padded(flat_values(rows, name), counts, fill=-1))
            continue
        width = len(flat_values(rows, name)) // total
        if np.array_equal(list_lengths(rows, name), tokens * width):
            parts.append(flat_values(rows, name).reshape(total, width))
    lacks = signal.candidates - sum(part.shape[1] for part in parts)
    if signal.uneven != (counts is not None) or lacks < 0 or (lacks and not signal.uneven):
        raise DataError(
            f"the rollout does not hold {signal.candidates} candidates of every token: it was "
            f"sampled with another {' or '.join(OWN.values())}"
        )
    return np.concatenate([*parts, np.full((total, lacks), -1, np.int32)], axis=1)


def with_own_candidates(known: pa.Table, rows: pa.Table, signal: Signal) -> pa.Table:
    """Return the stored scores that are of the very candidates that rollout rows have.

    Another student may have sampled the same sequence with other ids in mind.

    Args:
        known: stored scores of some of the rows' sequences.
        rows: the rollout rows.
        signal: what the scorer keeps.
    """
    if not signal.candidates or not known.num_rows:
        return known
    first = pc.index_in(known.column("sequence_digest"), value_set=rows.column("sequence_digest"))
    mine = rows.take(first)
    ids, lengths = flat_values(known, "candidate_ids"), list_lengths(known, "candidate_ids")
    if signal.uneven:
        counts, lengths = flat_values(known, COUNTED), list_lengths(known, COUNTED)
        found_TN = padded(ids, counts, fill=-1, width=signal.candidates)
    else:
        lengths //= signal.candidates
        found_TN = ids.reshape(-1, signal.candidates)
    other_T = (found_TN != _own_ids(mine, signal)).any(axis=1)
    differing = np.bincount(np.repeat(np.arange(len(lengths)), lengths), other_T, len(lengths))
    return known.filter(pa.array(differing == 0))
