"""Divergences: their signs, bounds, ends and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from tests.support.lossreference import (
    DIVERGENCES,
    FORWARD,
    JSD,
    NEG_INF,
    REVERSE,
    TVD,
    build,
    case,
    loss_and_gradient,
    name_of,
    random_logits,
    raw_columns,
    reference,
    rng,
)


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(2, 40),
    share=st.floats(0, 1),
    sharp_p=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    sharp_q=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    beta=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_no_divergence_is_negative_and_no_gradient_is_nan(
    vocab: int, share: float, sharp_p: float, sharp_q: float, beta: float, seed: int
) -> None:
    teacher_TV = random_logits(6, vocab, sharp=sharp_p, seed=seed)
    logits_TV = random_logits(6, vocab, sharp=sharp_q, seed=seed + 1)
    tokens_T = torch.randint(0, vocab, (6,), generator=rng(seed))
    columns = raw_columns(teacher_TV, tokens_T, max(1, round(share * vocab)))
    targets = build(columns, topk_logprobs_TK=columns["topk_logprobs_TK"].half())
    for loss in [FORWARD, REVERSE, LossConfig(kind="jsd", beta=beta)]:
        loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
        assert bool((loss_T >= -1e-5).all()), loss_T
        assert bool(grad_TV.isfinite().all())


@pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
def test_a_divergence_is_zero_exactly_where_both_sides_agree_on_the_categories(
    loss: LossConfig,
) -> None:
    _, teacher_TV, targets = case(loss, k=4)
    inside_TV = torch.zeros(9, 12, dtype=torch.bool).scatter(-1, targets.ids_TS, True)
    log_p_TV = teacher_TV.log_softmax(-1)
    flat_TV = targets.tail_T.double()[:, None] - (~inside_TV).sum(-1, keepdim=True).log()
    agree_TV = torch.where(inside_TV, log_p_TV, flat_TV)  # another shape inside the tail
    loss_T, grad_TV = loss_and_gradient(agree_TV, targets, loss)
    torch.testing.assert_close(loss_T, torch.zeros(9), rtol=0, atol=1e-6)
    if loss is not TVD:  # which has a kink there: rounding chooses the side
        torch.testing.assert_close(grad_TV, torch.zeros(9, 12).double(), rtol=0, atol=1e-6)
    differ_TV = agree_TV.scatter_add(-1, targets.ids_TS[:, :1], torch.ones(9, 1).double())
    assert bool((loss_and_gradient(differ_TV, targets, loss)[0] > 1e-3).all())


@pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
def test_a_larger_support_never_lowers_the_loss_and_the_whole_vocabulary_bounds_it(
    loss: LossConfig,
) -> None:
    logits_TV, teacher_TV, _ = case(loss, k=1)
    tokens_T = teacher_TV.argmax(-1)  # inside every top-k, so that supports are nested
    values = [
        loss_and_gradient(logits_TV, build(raw_columns(teacher_TV, tokens_T, k)), loss)[0]
        for k in range(1, 13)
    ]
    for smaller_T, larger_T in zip(values, values[1:], strict=False):
        assert bool((smaller_T <= larger_T + 1e-6).all())
    assert bool((values[0] < values[-1] - 1e-3).all())


def category_values(
    logits_TV: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, log P and log Q of each id's category, P and Q of each token's tail, in float64."""
    log_q_TV = logits_TV.log_softmax(-1)
    inside_TV = torch.zeros_like(log_q_TV, dtype=torch.bool).scatter(-1, targets.ids_TS, True)
    log_q_tail_T1 = log_q_TV.masked_fill(inside_TV, NEG_INF).logsumexp(-1, keepdim=True)
    log_p_tail_T1 = targets.tail_T.double()[:, None]
    log_p_TV = log_p_tail_T1.expand_as(log_q_TV).clone()
    for t, valid_S in enumerate(targets.valid_TS):
        log_p_TV[t, targets.ids_TS[t][valid_S]] = targets.logprobs_TS[t][valid_S].double()
    log_q_category_TV = torch.where(inside_TV, log_q_TV, log_q_tail_T1)
    return log_q_TV.exp(), log_p_TV, log_q_category_TV, inside_TV, log_p_tail_T1 - log_q_tail_T1


def test_the_forward_gradient_is_q_minus_p_inside_and_rescales_the_tail_outside() -> None:
    logits_TV, _, targets = case(FORWARD, k=4)
    q_TV, log_p_TV, _, inside_TV, log_tail_ratio_T1 = category_values(logits_TV, targets)
    expected_TV = torch.where(
        inside_TV, q_TV - log_p_TV.exp(), q_TV * (1 - log_tail_ratio_T1.exp())
    )
    _, grad_TV = loss_and_gradient(logits_TV, targets, FORWARD)
    torch.testing.assert_close(grad_TV, expected_TV, rtol=2e-6, atol=1e-6)


def test_the_reverse_gradient_is_q_times_the_excess_log_ratio_of_the_category() -> None:
    logits_TV, teacher_TV, targets = case(REVERSE, k=4)
    q_TV, log_p_TV, log_q_TV, _, _ = category_values(logits_TV, targets)
    kl_T, _ = reference(logits_TV, teacher_TV, targets, REVERSE)
    expected_TV = q_TV * (log_q_TV - log_p_TV - kl_T[:, None])
    _, grad_TV = loss_and_gradient(logits_TV, targets, REVERSE)
    torch.testing.assert_close(grad_TV, expected_TV, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_jsd_gradient_is_q_times_the_excess_log_ratio_to_the_mixture(beta: float) -> None:
    loss = LossConfig(kind="jsd", beta=beta)
    logits_TV, _, targets = case(loss, k=4)
    q_TV, log_p_TV, log_q_TV, _, _ = category_values(logits_TV, targets)
    log_m_TV = ((1 - beta) * log_q_TV.exp() + beta * log_p_TV.exp()).log()
    kl_T1 = (q_TV * (log_q_TV - log_m_TV)).sum(-1, keepdim=True)
    expected_TV = (1 - beta) * q_TV * (log_q_TV - log_m_TV - kl_T1)
    _, grad_TV = loss_and_gradient(logits_TV, targets, loss)
    torch.testing.assert_close(grad_TV, expected_TV, rtol=2e-6, atol=1e-6)


def test_the_ends_of_beta_are_the_two_kls_bit_for_bit() -> None:
    logits_TV, _, targets = case(JSD, k=4)
    for beta, kl in [(0.0, FORWARD), (1.0, REVERSE)]:
        found = loss_and_gradient(logits_TV, targets, LossConfig(kind="jsd", beta=beta))
        expected = loss_and_gradient(logits_TV, targets, kl)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.5])
def test_jsd_is_symmetric_when_sides_and_beta_are_swapped_and_at_most_ln_2(beta: float) -> None:
    first_TV, second_TV, targets = case(JSD, k=12)
    back = build(raw_columns(first_TV, targets.token_ids_T, 12))
    here_T, _ = loss_and_gradient(first_TV, targets, LossConfig(kind="jsd", beta=beta))
    there_T, _ = loss_and_gradient(second_TV, back, LossConfig(kind="jsd", beta=1 - beta))
    torch.testing.assert_close(here_T, there_T, rtol=2e-6, atol=1e-6)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert bool((here_T <= bound + 1e-6).all()) and bound <= math.log(2) + 1e-12
