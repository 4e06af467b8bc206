"""The threshold samples of a unit's tokens, as scores and rollout hold them. Pure.

Shapes: T response tokens, N ids of a sample.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.learner.sequences import SampleColumns
from pipeline.scores.candidates import own_counts, split_candidates
from pipeline.scores.inclusion import inclusions, sampled_mass
from pipeline.scores.scores import Scores
from pipeline.shards.rollouts import OWN_SAMPLE
from schemas.columns import Floats, flat_values
from schemas.errors import DataError
from schemas.ragged import padded
from schemas.scoresignal import SampleOf


def sample_columns(
    of: SampleOf, scores: Scores, rows: pa.Table, *, where: str
) -> SampleColumns | None:
    """Return a sample of one side, or None where the rows hold none.

    Args:
        of: whose sample.
        scores: of the rows.
        rows: the rollout rows, with the columns `OWN_SAMPLE`.
        where: what messages call the scores.

    Raises:
        DataError: the teacher scored other ids than the student has sampled.
    """
    return _of_teacher(scores) if of == "teacher" else _of_student(scores, rows, where)


def _of_teacher(scores: Scores) -> SampleColumns | None:
    if scores.sample_ids is None or scores.sample_logprobs is None:
        return None
    chances_TN = inclusions(scores.sample_logprobs, sampled_mass(scores))
    return SampleColumns(
        of="teacher",
        ids_TN=scores.sample_ids,
        logprobs_TN=scores.sample_logprobs,
        chances_TN=chances_TN.astype(np.float32),
    )


def _of_student(scores: Scores, rows: pa.Table, where: str) -> SampleColumns | None:
    if scores.candidate_ids is None or scores.candidate_logprobs is None:
        return None
    tokens = len(scores.token_logprob)
    if (
        OWN_SAMPLE[0] not in rows.column_names
        or rows.column(OWN_SAMPLE[0]).null_count
        or not tokens
    ):
        return None
    counts = own_counts(rows)
    ids_TN, mu_TN = (
        _of_tokens(flat_values(rows, name), tokens, counts, fill=fill)
        for name, fill in zip(OWN_SAMPLE[:2], (-1, -np.inf), strict=True)
    )
    count = ids_TN.shape[1]
    _, scored_TN = split_candidates(scores.candidate_ids, count)
    if not np.array_equal(scored_TN, ids_TN):
        raise DataError(
            f"{where} has no scores of the ids that the student sampled beside its tokens: it "
            "belongs to another rollout. `opd score --only-invalid` makes it anew"
        )
    chances_TN: Floats = inclusions(mu_TN, np.zeros(tokens)).astype(np.float32)
    _, logprobs_TN = split_candidates(scores.candidate_logprobs, count)
    return SampleColumns(
        of="student",
        ids_TN=ids_TN,
        logprobs_TN=logprobs_TN,
        chances_TN=chances_TN,
        rollout_logprobs_TN=mu_TN,
    )


def _of_tokens(values: Any, tokens: int, counts: Any, *, fill: float) -> Any:
    if counts is None:
        return values.reshape(tokens, -1)
    return padded(values, counts, fill=fill)
