"""The log-normaliser of the teacher at the objective's temperature, as scores hold it. Pure."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.learner.sequences import TeacherColumns
from schemas.columns import flat_values


def with_log_z(
    columns: TeacherColumns, scores: pa.Table, teacher: str, places: Mapping[str, int] | None
) -> TeacherColumns:
    """Return a teacher's columns with log Z, NaN where it was not scored.

    Args:
        columns: of the scores.
        scores: of some rows.
        teacher: who scored.
        places: which of a teacher's log-normalisers is wanted; None where none is.
    """
    if places is None:
        return columns
    tokens, place = len(columns.token_logprob_T), places.get(teacher)
    if place is None:
        return replace(columns, log_z_T=np.full(tokens, np.nan, np.float32))
    found = flat_values(scores, "log_normalisers").reshape(tokens, -1)
    return replace(columns, log_z_T=found[:, place])
