"""Identities between objectives, in float64 over all ids: limits, sums, several teachers, log Z."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.divergences import DIVERGENCES
from pipeline.objectives.losses import token_losses
from pipeline.objectives.tempering import cool
from schemas.config.loss import LossConfig
from tests.support.lossreference import build, random_logits, raw_columns, rng

V = 12


def slope(kind: str, logits_V: Tensor, log_p_V: Tensor, **keys: Any) -> tuple[Tensor, Tensor]:
    """Return value and gradient of a divergence over all ids."""
    leaf_V = logits_V.clone().requires_grad_()
    loss = LossConfig.model_validate({"kind": kind, **keys})
    value = DIVERGENCES[kind].term(log_p_V, leaf_V.log_softmax(0), loss).sum()
    return value.detach(), torch.autograd.grad(value, leaf_V)[0]


def sides(seed: int) -> tuple[Tensor, Tensor]:
    student_V, teacher_V = 0.4 * random_logits(2, V, seed=seed).double()
    return student_V, teacher_V.log_softmax(0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("end", "kind"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_ends_of_the_jsd_are_the_kls_once_it_is_divided_by_how_far_they_are(
    end: float, kind: str, seed: int
) -> None:
    """And once it is normalized; without either, both ends are 0."""
    logits_V, log_p_V = sides(seed)
    expected = slope(kind, logits_V, log_p_V)
    for away in (1e-4, 1e-6):
        beta = abs(end - away)
        bare = slope("jsd", logits_V, log_p_V, beta=beta)
        normal = slope("jsd", logits_V, log_p_V, beta=beta, normalized=True)
        for part in (0, 1):
            assert float(bare[part].abs().max()) < 20 * away
            torch.testing.assert_close(bare[part] / away, expected[part], rtol=0, atol=99 * away)
            torch.testing.assert_close(normal[part], expected[part], rtol=0, atol=99 * away)


@pytest.mark.parametrize("seed", range(4))
def test_at_one_half_the_normalized_jsd_is_four_times_the_jsd(seed: int) -> None:
    logits_V, log_p_V = sides(seed)
    plain, four = (slope("jsd", logits_V, log_p_V, normalized=n) for n in (False, True))
    for part in (0, 1):
        torch.testing.assert_close(4 * plain[part], four[part], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_ends_of_skew_and_alpha_are_the_kls(seed: int) -> None:
    logits_V, log_p_V = sides(seed)
    near = 1e-6
    for kind, keys, end in (
        ("skew_kl", {"skew": near}, "forward_kl"),
        ("skew_reverse_kl", {"skew": near}, "reverse_kl"),
        ("alpha", {"alpha": 1 - near}, "forward_kl"),
        ("alpha", {"alpha": near}, "reverse_kl"),
    ):
        found, expected = slope(kind, logits_V, log_p_V, **keys), slope(end, logits_V, log_p_V)
        for part in (0, 1):
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_losses_of_teachers_are_one_loss_of_their_mixture(seed: int) -> None:
    """Forward: of the mean of their probabilities. Reverse: of the mean of their logarithms."""
    logits_V, first_V = sides(seed)
    second_V = random_logits(1, V, seed=seed + 50).double()[0].log_softmax(0)
    shares = torch.tensor([0.3, 0.7]).double()
    log_p_2V = torch.stack([first_V, second_V])
    arithmetic_V = (shares[:, None] * log_p_2V.exp()).sum(0).log()
    raw_V = (shares[:, None] * log_p_2V).sum(0)
    geometric_V, log_z = raw_V.log_softmax(0), raw_V.logsumexp(0)
    assert float(log_z) <= 0.0
    for kind, mixed_V in (("forward_kl", arithmetic_V), ("reverse_kl", geometric_V)):
        parts = [slope(kind, logits_V, one_V) for one_V in log_p_2V]
        value, gradient_V = (
            sum(share * part[i] for share, part in zip(shares, parts, strict=True)) for i in (0, 1)
        )
        one, one_V = slope(kind, logits_V, mixed_V)
        torch.testing.assert_close(gradient_V, one_V, rtol=0, atol=1e-12)
        if kind == "reverse_kl":
            torch.testing.assert_close(value, one - log_z, rtol=0, atol=1e-12)
        else:
            assert float(value) >= float(one) - 1e-12


def test_rewards_and_distillation_add_up_as_losses_as_they_do_as_advantages() -> None:
    """Where no ratio is clipped and none of the weights is cut."""
    rows, rl, distill = 8, 0.7, 1.3
    logits_TV, teacher_TV = random_logits(rows, V, seed=1), random_logits(rows, V, seed=2)
    tokens_T = torch.randint(0, V, (rows,), generator=rng(3))
    mu_TV = (logits_TV + 0.05 * random_logits(rows, V, seed=4)).log_softmax(-1)
    at = (torch.arange(rows), tokens_T)
    columns = raw_columns(teacher_TV, tokens_T, 4, mu_T=mu_TV[at])
    reward_T = torch.randn(rows, generator=rng(5))
    keys = {"rl_weight": rl, "distill_weight": distill, "importance_cap": 1e9}
    keys |= {"clip_low": 0.9, "clip_high": 9.0}
    loss = LossConfig.model_validate({"kind": "policy_gradient", "estimator": "bucket", **keys})
    leaf_TV = logits_TV.clone().requires_grad_()
    loss_T, _ = token_losses(leaf_TV, build(columns, advantage_T=reward_T), loss)
    (found_TV,) = torch.autograd.grad(loss_T.sum(), leaf_TV)
    other_TV = logits_TV.double().requires_grad_()
    log_q_T = other_TV.log_softmax(-1)[at]
    ratio_T = (log_q_T - mu_TV[at].double()).exp()
    gap_T = (teacher_TV.double().log_softmax(-1)[at] - log_q_T).detach()
    together_T = -(rl * reward_T.double() + distill * gap_T) * ratio_T
    (expected_TV,) = torch.autograd.grad(together_T.sum(), other_TV)
    torch.testing.assert_close(found_TV.double(), expected_TV, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 99), st.integers(1, V - 1), st.sampled_from([0.3, 0.5, 0.9, 1.2, 2.0, 5.0]))
def test_a_log_z_that_was_not_scored_lies_between_its_bounds(
    seed: int, k: int, temperature: float
) -> None:
    log_p_TV = (2.0 * random_logits(5, V, seed=seed).double()).log_softmax(-1)
    top = log_p_TV.topk(k, dim=-1)
    logprobs_TS = torch.cat([top.values, torch.full((5, 1), -math.inf).double()], dim=-1)
    valid_TS = torch.cat([torch.ones(5, k), torch.zeros(5, 1)], dim=-1).bool()
    tail_T = log_p_TV.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    cooled = cool(
        logprobs_TS,
        valid_TS,
        tail_T,
        temperature=temperature,
        log_z_T=torch.full((5,), math.nan).double(),
        vocab_size=V,
    )
    exact_T = (log_p_TV / temperature).logsumexp(-1)
    assert bool(((cooled.log_z_T - exact_T).abs() <= cooled.uncertain_T + 1e-9).all())
