"""Batches of the learner: joined, cut, and the one of which nothing is trained."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from pipeline.learner.feed.targets import batch_targets
from pipeline.learner.sequences import Batch, TeacherColumns, join_batches, untrained_batch
from schemas.config.loss import LossConfig


def batch(tokens: int, *, k: int) -> Batch:
    """Return one sequence whose every number is its own."""
    numbers = np.arange(tokens, dtype=np.float32)
    ids_TK = np.arange(tokens * k, dtype=np.int32).reshape(tokens, k)
    return Batch(
        prompt_ids_P=np.array([90, 91], dtype=np.int32),
        prompt_tokens_B=np.array([2]),
        response_tokens_B=np.array([tokens]),
        token_ids_T=np.arange(tokens, dtype=np.int32),
        weight_T=numbers,
        rollout_logprob_T=-numbers,
        ended_B=np.array([True]),
        teacher=TeacherColumns(
            ids_TK, -ids_TK.astype(np.float32), -2 * numbers[:, None], -3 * numbers
        ),
    )


def test_a_narrower_top_k_is_padded_to_the_widest() -> None:
    found = join_batches([batch(2, k=3), batch(1, k=1)])
    assert found.teacher.topk_ids_TK.tolist() == [[0, 1, 2], [3, 4, 5], [0, -1, -1]]
    assert found.teacher.topk_logprobs_TK[2].tolist() == [0.0, -np.inf, -np.inf]
    assert found.teacher.topk_ids_TK.dtype == np.int32
    assert found.teacher.topk_logprobs_TK.dtype == np.float32
    assert [row.tolist() for row in found.id_rows()] == [[90, 91, 0, 1], [90, 91, 0]]


def test_taken_sequences_stand_in_the_order_they_were_asked_for() -> None:
    found = join_batches([batch(1, k=2), batch(3, k=2)]).take(np.array([1, 0, 1]))
    assert found.response_tokens_B.tolist() == [3, 1, 3]
    assert found.token_ids_T.tolist() == [0, 1, 2, 0, 0, 1, 2]
    assert (found.teacher.tail_T == -2 * found.weight_T).all()
    assert (found.teacher.token_logprob_T == 3 * found.rollout_logprob_T).all()
    assert found.teacher.topk_ids_TK[:3].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_batch_without_training_is_a_whole_sequence_with_targets_of_weight_0() -> None:
    found = untrained_batch()
    assert [row.tolist() for row in found.id_rows()] == [[0, 0]]
    targets = batch_targets(found, LossConfig(kind="reverse_kl"), vocab_size=5)
    assert targets.weight_T.tolist() == [0.0]
    assert torch.isfinite(targets.logprobs_TS[targets.valid_TS]).all()


def test_a_batch_is_not_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        batch(1, k=1).weight_T = np.zeros(1, np.float32)  # type: ignore[misc] # it is frozen
