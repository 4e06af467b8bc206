"""Stored scores are reused only for the candidates that they are of."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.scores.candidates import candidates_of, with_own_candidates
from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import SCORES

N = 2
LENGTHS = [3, 1, 4]


def rollout(ids: list[list[int]], names: str = "abc") -> pa.Table:
    return pa.table(
        {
            "sequence_digest": list(names),
            "response_ids": pa.array([[1] * n for n in LENGTHS[: len(ids)]], pa.list_(pa.int32())),
            "student_topk_ids": pa.array(ids, pa.list_(pa.int32())),
        }
    )


def stored(ids: list[list[int]], names: str) -> pa.Table:
    kind = SCORES.field("candidate_ids").type
    return pa.table({"sequence_digest": list(names), "candidate_ids": pa.array(ids, kind)})


IDS = [list(range(N * n)) for n in LENGTHS]


def test_scores_of_other_candidates_are_left_out() -> None:
    rows = rollout(IDS)
    changed = [*IDS[2][:-1], 99]
    known = stored([changed, IDS[0], IDS[1]], "cab")
    found = with_own_candidates(known, rows, Signal(4, candidates=N))
    assert found.column("sequence_digest").to_pylist() == ["a", "b"]


def test_without_candidates_every_stored_row_stands() -> None:
    known = stored([[0], [0], [0]], "abc")
    assert with_own_candidates(known, rollout(IDS), Signal(4)) is known


def test_nothing_known_is_nothing_kept() -> None:
    known = stored([], "")
    assert with_own_candidates(known, rollout(IDS), Signal(4, candidates=N)).num_rows == 0


def test_candidates_have_the_shape_of_the_tokens() -> None:
    found = candidates_of(rollout(IDS), Signal(4, candidates=N))
    assert found is not None and [f.shape for f in found] == [(n, N) for n in LENGTHS]
    np.testing.assert_array_equal(np.concatenate(found).reshape(-1), np.concatenate(IDS))
    assert candidates_of(rollout(IDS), Signal(4)) is None
    with pytest.raises(DataError, match=r"rollout\.candidates"):
        candidates_of(rollout(IDS), Signal(4, candidates=3))
