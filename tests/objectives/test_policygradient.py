"""The policy gradient: what it expects to be, and how far it may go."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.objectives.losses import token_losses
from schemas.config.loss import LossConfig
from schemas.errors import DataError
from tests.support.lossreference import (
    OFF_POLICY,
    ON_POLICY,
    REVERSE,
    build,
    case,
    divergence,
    loss_and_gradient,
    random_logits,
    raw_columns,
    reference,
)


def every_token(mu_V: Tensor, logits_V: Tensor, teacher_V: Tensor, loss: LossConfig) -> Tensor:
    """Gradient of the loss's expectation over tokens drawn from mu at one fixed prefix."""
    vocab = len(mu_V)
    columns = raw_columns(
        teacher_V.expand(vocab, -1), torch.arange(vocab), 1, mu_T=mu_V.log_softmax(-1)
    )
    targets = build(columns, weight_T=mu_V.softmax(-1).float())
    logits_V = logits_V.clone().requires_grad_()
    loss_T, _ = token_losses(logits_V.expand(vocab, -1), targets, loss)
    return torch.autograd.grad((loss_T * targets.weight_T).sum(), logits_V)[0]


def reverse_kl_gradient(logits_V: Tensor, teacher_V: Tensor) -> Tensor:
    logits_V = logits_V.clone().requires_grad_()
    kl = divergence(teacher_V.log_softmax(-1), logits_V.log_softmax(-1), REVERSE)
    return torch.autograd.grad(kl, logits_V)[0]


def test_on_policy_its_expected_gradient_is_that_of_the_reverse_kl() -> None:
    z_V, p_V = random_logits(2, 12, seed=7)
    for loss in [ON_POLICY, OFF_POLICY]:
        found_V = every_token(z_V, z_V, p_V, loss)
        torch.testing.assert_close(found_V, reverse_kl_gradient(z_V, p_V), rtol=1e-5, atol=2e-6)


def test_off_policy_the_weighted_expected_gradient_is_that_of_the_reverse_kl() -> None:
    z_V, p_V, mu_V = random_logits(3, 12, seed=8)
    expected_V = reverse_kl_gradient(z_V, p_V)
    found_V = every_token(mu_V, z_V, p_V, OFF_POLICY)
    torch.testing.assert_close(found_V, expected_V, rtol=1e-5, atol=5e-6)
    biased_V = every_token(mu_V, z_V, p_V, ON_POLICY)
    assert float((biased_V - expected_V).abs().max()) > 1e-2


def test_the_cap_bounds_the_weight_and_keeps_the_gradient() -> None:
    logits_TV, teacher_TV, targets = case(OFF_POLICY, k=4)
    assert targets.rollout_logprob_T is not None
    log_q_TV = logits_TV.log_softmax(-1)
    log_q_T = log_q_TV.gather(-1, targets.token_ids_T[:, None])[:, 0]
    ratio_T = (log_q_T - targets.rollout_logprob_T).exp()
    cap = float(ratio_T.median())
    loss = LossConfig(kind="policy_gradient", importance_cap=cap)
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
    advantage_T = targets.token_logprob_T - log_q_T
    torch.testing.assert_close(
        loss_T.double(), -advantage_T * ratio_T.clamp(max=cap), rtol=1e-5, atol=1e-5
    )
    _, whole_TV = reference(logits_TV, teacher_TV, targets, OFF_POLICY)
    share_T1 = (cap / ratio_T).clamp(max=1.0)[:, None]
    assert float(share_T1.min()) < 1.0
    torch.testing.assert_close(grad_TV, whole_TV * share_T1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mu", [-500.0, 0.0])
def test_log_ratios_are_bounded_by_20(mu: float) -> None:
    logits_TV, teacher_TV, targets = case(OFF_POLICY, k=4)
    logits_TV = logits_TV.scatter_add(
        -1, targets.token_ids_T[:, None], torch.full((9, 1), -60.0).double()
    )
    columns = raw_columns(teacher_TV, targets.token_ids_T, 4, mu_T=torch.full((9,), mu))
    loss_T, _ = loss_and_gradient(logits_TV, build(columns), OFF_POLICY)
    log_q_TV = logits_TV.log_softmax(-1)
    advantage_T = targets.token_logprob_T - log_q_TV.gather(-1, targets.token_ids_T[:, None])[:, 0]
    expected_T = -advantage_T * math.exp(20.0 if mu < 0 else -20.0)
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=1e-5, atol=0)


def test_the_advantage_clip_bounds_the_gradient_of_surprising_tokens() -> None:
    logits_TV, _, targets = case(ON_POLICY, k=4)
    clip = LossConfig(kind="policy_gradient", importance="none", advantage_clip=0.5)
    log_q_TV = logits_TV.log_softmax(-1)
    log_q_T = log_q_TV.gather(-1, targets.token_ids_T[:, None])[:, 0]
    advantage_T = (targets.token_logprob_T - log_q_T).clamp(-0.5, 0.5)
    loss_T, _ = loss_and_gradient(logits_TV, targets, clip)
    torch.testing.assert_close(loss_T.double(), -advantage_T * log_q_T, rtol=1e-5, atol=1e-6)


def test_importance_weights_without_rollout_logprobs_are_refused() -> None:
    logits_TV, _, targets = case(ON_POLICY, k=4)
    with pytest.raises(DataError, match="importance weights need"):
        token_losses(logits_TV, targets, OFF_POLICY)
