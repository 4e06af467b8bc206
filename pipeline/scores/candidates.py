"""The student's own ids of each position, which a teacher scores too. Pure.

Shapes: T tokens of a row, N candidates.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import Ids, flat_values, list_lengths, list_rows
from schemas.errors import DataError
from schemas.scoresignal import Signal


def candidates_of(rows: pa.Table, signal: Signal) -> list[Ids] | None:
    """Return the student's own ids of each rollout row, int32 [T, N]; None where none are scored.

    Raises:
        DataError: the rollout was sampled with another number of them.
    """
    if not signal.candidates:
        return None
    column, tokens = rows.column("student_topk_ids"), list_lengths(rows, "response_ids")
    if column.null_count or not np.array_equal(
        list_lengths(rows, "student_topk_ids"), tokens * signal.candidates
    ):
        raise DataError(
            f"the rollout does not hold {signal.candidates} candidates of every token: it was "
            "sampled with another rollout.candidates"
        )
    return [row.reshape(-1, signal.candidates) for row in list_rows(rows, "student_topk_ids")]


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
    candidates_of(mine, signal)
    other = flat_values(known, "candidate_ids") != flat_values(mine, "student_topk_ids")
    lengths = list_lengths(known, "candidate_ids")
    differing = np.bincount(np.repeat(np.arange(len(lengths)), lengths), other, len(lengths))
    return known.filter(pa.array(differing == 0))
