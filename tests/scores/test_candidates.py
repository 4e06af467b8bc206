"""Stored scores are reused only for the candidates that they are of."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.scores.candidates import candidates_of, split_candidates, with_own_candidates
from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import SCORES

N = 2
LENGTHS = [3, 1, 4]


def rollout(
    ids: list[list[int]] | None, names: str = "abc", sample: list[list[int]] | None = None
) -> pa.Table:
    absent = [None] * len(names)
    return pa.table(
        {
            "sequence_digest": list(names),
            "response_ids": pa.array([[1] * n for n in LENGTHS], pa.list_(pa.int32())),
            "student_topk_ids": pa.array(ids or absent, pa.list_(pa.int32())),
            "student_sample_ids": pa.array(sample or absent, pa.list_(pa.int32())),
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


SAMPLE = [[7 + i for i in range(3 * n)] for n in LENGTHS]


def test_candidates_are_the_likeliest_ids_and_then_those_of_the_sample() -> None:
    found = candidates_of(rollout(IDS, sample=SAMPLE), Signal(4, candidates=N + 3))
    assert found is not None and [f.shape for f in found] == [(n, N + 3) for n in LENGTHS]
    likeliest, sample = split_candidates(np.concatenate(found), 3)
    assert likeliest.reshape(-1).tolist() == np.concatenate(IDS).tolist()
    assert sample.reshape(-1).tolist() == np.concatenate(SAMPLE).tolist()
    alone = candidates_of(rollout(None, sample=SAMPLE), Signal(0, candidates=3))
    assert alone is not None
    likeliest, sample = split_candidates(np.concatenate(alone), 3)
    assert likeliest.shape == (sum(LENGTHS), 0)
    assert sample.reshape(-1).tolist() == np.concatenate(SAMPLE).tolist()


@pytest.mark.parametrize("wanted", [N, 3, N + 4])
def test_another_number_of_own_ids_is_refused(wanted: int) -> None:
    with pytest.raises(DataError, match=rf"hold {wanted} candidates.*rollout\.sample"):
        candidates_of(rollout(IDS, sample=SAMPLE), Signal(4, candidates=wanted))
    ragged = [SAMPLE[0][:-1], *SAMPLE[1:]]
    with pytest.raises(DataError, match=r"rollout\.candidates or rollout\.sample"):
        candidates_of(rollout(None, sample=ragged), Signal(4, candidates=3))


def test_scores_of_another_sample_are_left_out() -> None:
    rows, signal = rollout(IDS, sample=SAMPLE), Signal(4, candidates=N + 3)
    found = candidates_of(rows, signal)
    assert found is not None
    own = [part.reshape(-1).tolist() for part in found]
    changed = [*own[2][:-1], 99]
    kept = with_own_candidates(stored([changed, own[0], own[1]], "cab"), rows, signal)
    assert kept.column("sequence_digest").to_pylist() == ["a", "b"]


COUNTS = [[1, 3, 2], [2], [1, 1, 2, 1]]
UNEVEN = Signal(4, candidates=N + 3, uneven=True)


def uneven(counts: list[list[int]] | None = None) -> pa.Table:
    """Return rollout rows whose tokens have numbers of ids of their own."""
    counts = counts or COUNTS
    sample = [[7 + i for n in row for i in range(n)] for row in counts]
    kind = pa.list_(pa.int32())
    return rollout(IDS, sample=sample).append_column("student_sample_count", pa.array(counts, kind))


def test_a_token_that_has_fewer_ids_has_none_in_their_places() -> None:
    found = candidates_of(uneven(), UNEVEN)
    assert found is not None and [f.shape for f in found] == [(n, N + 3) for n in LENGTHS]
    assert found[0].tolist() == [[0, 1, 7, -1, -1], [2, 3, 7, 8, 9], [4, 5, 7, 8, -1]]
    for rows, signal in (
        (uneven(), Signal(4, candidates=N + 3)),
        (uneven(), Signal(4, candidates=N + 2, uneven=True)),
        (rollout(IDS, sample=SAMPLE), UNEVEN),
    ):
        with pytest.raises(DataError, match=r"rollout\.candidates or rollout\.sample"):
            candidates_of(rows, signal)


def test_scores_of_other_numbers_of_ids_are_left_out() -> None:
    def scored(counts: list[list[int]]) -> pa.Table:
        found = candidates_of(uneven(counts), UNEVEN)
        assert found is not None
        ids = [row[row >= 0].tolist() for row in found]
        named = [[n + N for n in row] for row in counts]
        kind = SCORES.field("candidate_count").type
        return stored(ids, "abc").append_column("candidate_count", pa.array(named, kind))

    assert with_own_candidates(scored(COUNTS), uneven(), UNEVEN).num_rows == 3
    other = [COUNTS[0], [1], [2, 1, 1, 1]]
    kept = with_own_candidates(scored(other), uneven(), UNEVEN)
    assert kept.column("sequence_digest").to_pylist() == ["a"]
