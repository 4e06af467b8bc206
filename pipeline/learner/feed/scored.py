"""Rows of a round and a teacher's scores of them, each held against what it should be of. Pure."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.learner.feed.samples import sample_columns
from pipeline.learner.sequences import TeacherColumns
from pipeline.scores.columns import scores_of
from schemas.columns import Ids, list_lengths
from schemas.errors import DataError, IdentityError
from schemas.records.runs import RolloutManifest
from schemas.scoresignal import SampleOf


def teacher_columns(
    table: pa.Table, rows: pa.Table, samples: Sequence[SampleOf], *, where: str
) -> TeacherColumns:
    """Return what the losses read of a score table, with the first sample that it holds.

    Args:
        table: the scores.
        rows: the rollout rows that they are of.
        samples: whose threshold samples are wanted, the better one first.
        where: what messages call the scores.

    Raises:
        DataError: they are of other sequences.
    """
    _check_aligned(where, table, rows)
    scores = scores_of(table)
    found = (sample_columns(of, scores, rows, where=where) for of in samples)
    return TeacherColumns(
        topk_ids_TK=scores.topk_ids,
        topk_logprobs_TK=scores.topk_logprobs,
        tail_TB=scores.tail_logprobs.reshape(len(scores.token_logprob), -1),
        token_logprob_T=scores.token_logprob,
        sample=next((sample for sample in found if sample is not None), None),
    )


def labels(token_ids_T: Ids) -> TeacherColumns:
    """Return what tokens say that are to be learnt as they stand: each has all the mass."""
    certain_T = np.zeros(len(token_ids_T), np.float32)
    return TeacherColumns(
        topk_ids_TK=token_ids_T[:, None],
        topk_logprobs_TK=certain_T[:, None],
        tail_TB=np.full((len(token_ids_T), 1), -np.inf, np.float32),
        token_logprob_T=certain_T,
    )


def check_policy(where: str, table: pa.Table, rollout: RolloutManifest) -> None:
    """Refuse rows of this round by another policy, and rows of rounds to come.

    Raises:
        IdentityError: there are some.
    """
    rounds = table.column("round")
    own = table.filter(pc.equal(rounds, rollout.round)).column("policy_version")
    foreign = [p for p in pc.unique(own).to_pylist() if p != rollout.policy_version]
    newest = pc.max(rounds).as_py()
    if foreign or (newest is not None and newest > rollout.round):
        found = f"policy {foreign[0]}" if foreign else f"round {newest}"
        raise IdentityError(
            f"{where} was sampled by {found}, but its manifest says round {rollout.round} by "
            f"policy {rollout.policy_version}: the shard belongs to another round or run"
        )


def _check_aligned(where: str, scores: pa.Table, rows: pa.Table) -> None:
    ours, theirs = rows.column("sequence_digest"), scores.column("sequence_digest")
    if ours.to_pylist() != theirs.to_pylist():
        raise DataError(
            f"{where} does not score the sequences of its rollout shard, row by row: it belongs to "
            "another unit. `opd score --only-invalid` makes it anew"
        )
    if not np.array_equal(
        list_lengths(scores, "token_logprob"), list_lengths(rows, "response_ids")
    ):
        raise DataError(f"{where} has another number of scored tokens than the responses have")
