"""Ids to which the teacher gives no probability at all."""

import pytest
import torch
from torch import Tensor

from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets
from tests.support.lossreference import (
    DIVERGENCES,
    FORWARD,
    JSD,
    NEG_INF,
    ON_POLICY,
    REVERSE,
    build,
    case,
    loss_and_gradient,
    raw_columns,
)


def masked_teacher(k: int) -> tuple[Tensor, Tensor, Targets]:
    """A teacher that gives the last six ids no probability at all."""
    logits_TV, teacher_TV, _ = case(FORWARD, k=k)
    teacher_TV[:, 6:] = NEG_INF
    tokens_T = torch.arange(9) % 6
    return logits_TV, teacher_TV, build(raw_columns(teacher_TV, tokens_T, k))


@pytest.mark.parametrize("k", [6, 8, 12])
def test_ids_and_tails_without_teacher_mass_add_exactly_nothing_to_the_forward_kl(k: int) -> None:
    logits_TV, teacher_TV, targets = masked_teacher(k)
    assert bool((targets.tail_T == NEG_INF).all())
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, FORWARD)
    log_p_TV, log_q_TV = teacher_TV.log_softmax(-1)[:, :6], logits_TV.log_softmax(-1)
    expected_T = (log_p_TV.exp() * (log_p_TV - log_q_TV[:, :6])).sum(-1)
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=2e-6, atol=2e-6)
    expected_TV = log_q_TV.exp() - teacher_TV.softmax(-1)
    torch.testing.assert_close(grad_TV, expected_TV, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("k", [6, 8, 12])
def test_student_weighted_losses_floor_a_teacher_without_mass_and_count_it(k: int) -> None:
    logits_TV, teacher_TV, targets = masked_teacher(k)
    floored_TV = teacher_TV.log_softmax(-1).clamp(min=-30.0)
    q_TV = logits_TV.softmax(-1)
    outside_T = q_TV[:, 6:].sum(-1)
    values = (q_TV * (logits_TV.log_softmax(-1) - floored_TV)).sum(-1)
    if k == 6:  # the six ids are one bucket
        values -= (q_TV * logits_TV.log_softmax(-1))[:, 6:].sum(-1) - outside_T * outside_T.log()
        loss_T, _ = loss_and_gradient(logits_TV, targets, REVERSE)
        torch.testing.assert_close(loss_T.double(), values, rtol=2e-6, atol=2e-6)
    for loss in [REVERSE, JSD, ON_POLICY]:
        loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
        assert bool(loss_T.isfinite().all()) and bool(grad_TV.isfinite().all())
        assert bool((token_losses(logits_TV, targets, loss)[1]["floored"] == 1.0).all())


@pytest.mark.parametrize("k", [4, 6])  # with and without a tail
def test_a_sampled_token_that_the_teacher_forbids_stays_finite(k: int) -> None:
    logits_TV, teacher_TV, _ = masked_teacher(k)
    targets = build(raw_columns(teacher_TV, torch.full((9,), 8), k))
    for loss in [*DIVERGENCES, ON_POLICY]:
        loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
        assert bool(loss_T.isfinite().all()) and bool(grad_TV.isfinite().all())
    _, found = token_losses(logits_TV, targets, ON_POLICY)
    assert torch.equal(found["sampled_reverse_kl"], found["student_token_logprob"] + 30.0)
    assert not bool(targets.tail_clamped_T.any())
