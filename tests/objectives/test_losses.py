"""Losses against a slow float64 reference that enumerates categories, and their identities."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.losses import DIAGNOSTICS, token_losses
from pipeline.objectives.targets import Targets, build_targets
from schemas.config.loss import LossConfig
from schemas.errors import DataError

NEG_INF = -math.inf
FORWARD = LossConfig(kind="forward_kl")
REVERSE = LossConfig(kind="reverse_kl")
JSD = LossConfig(kind="jsd", beta=0.3)
ON_POLICY = LossConfig(kind="policy_gradient", importance="none")
OFF_POLICY = LossConfig(kind="policy_gradient", importance="token", importance_cap=1e9)
DIVERGENCES = [FORWARD, REVERSE, JSD]
ALL = [*DIVERGENCES, ON_POLICY, OFF_POLICY]


def name_of(loss: object) -> str:
    assert isinstance(loss, LossConfig)
    return loss.kind if loss.kind != "policy_gradient" else f"{loss.kind}-{loss.importance}"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(rows: int, vocab: int, *, sharp: float = 2.0, seed: int = 0) -> Tensor:
    """Random logits whose float32 form is exact, in float64."""
    return (sharp * torch.randn(rows, vocab, generator=rng(seed))).double()


def raw_columns(
    teacher_TV: Tensor, tokens_T: Tensor, k: int, *, mu_T: Tensor | None = None
) -> dict[str, Any]:
    """What a teacher cache holds: the arguments of `build_targets`."""
    log_p_TV = teacher_TV.log_softmax(-1)
    values_TV, ids_TV = log_p_TV.sort(-1, descending=True)
    return {
        "topk_ids_TK": ids_TV[:, :k],
        "topk_logprobs_TK": values_TV[:, :k].float(),
        "tail_T": values_TV[:, k:].logsumexp(-1).float(),
        "token_ids_T": tokens_T,
        "token_logprob_T": log_p_TV.gather(-1, tokens_T[:, None])[:, 0].float(),
        "weight_T": torch.ones(len(tokens_T)),
        "rollout_logprob_T": None if mu_T is None else mu_T.float(),
        "vocab_size": teacher_TV.shape[-1],
    }


def build(columns: dict[str, Any], **changes: Tensor) -> Targets:
    return build_targets(**{**columns, **changes})


def loss_and_gradient(
    logits_TV: Tensor, targets: Targets, loss: LossConfig
) -> tuple[Tensor, Tensor]:
    logits_TV = logits_TV.detach().clone().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # a NaN inside is an error, masked later or not
        loss_T, _ = token_losses(logits_TV, targets, loss)
        return loss_T.detach(), torch.autograd.grad(loss_T.sum(), logits_TV)[0]


def divergence(log_p: Tensor, log_q: Tensor, loss: LossConfig) -> Tensor:
    """Divergence of two full lists of float64 log-probabilities, straight from its definition."""
    p, q = log_p.exp(), log_q.exp()
    if loss.kind == "forward_kl":
        return (p * (log_p - log_q)).sum()
    if loss.kind == "reverse_kl":
        return (q * (log_q - log_p)).sum()
    log_m = ((1 - loss.beta) * q + loss.beta * p).log()
    teacher, student = (p * (log_p - log_m)).sum(), (q * (log_q - log_m)).sum()
    return loss.beta * teacher + (1 - loss.beta) * student


def merged(log_probs_V: Tensor, support: list[int]) -> Tensor:
    """Log-probabilities on the support and, where there are other ids, on their bucket."""
    others = [v for v in range(len(log_probs_V)) if v not in set(support)]
    bucket = [log_probs_V[others].logsumexp(-1)[None]] if others else []
    return torch.cat([log_probs_V[support], *bucket])


def reference(
    logits_TV: Tensor, teacher_TV: Tensor, targets: Targets, loss: LossConfig
) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, one token at a time."""
    logits_TV = logits_TV.detach().clone().requires_grad_()
    rows = []
    for t, (z_V, y) in enumerate(zip(logits_TV, targets.token_ids_T.tolist(), strict=True)):
        log_p_V, log_q_V = teacher_TV[t].log_softmax(-1), z_V.log_softmax(-1)
        if loss.kind != "policy_gradient":
            ids = targets.ids_TS[t][targets.valid_TS[t]].tolist()
            rows.append(divergence(merged(log_p_V, ids), merged(log_q_V, ids), loss))
            continue
        advantage = (log_p_V[y] - log_q_V[y]).detach()
        mu = targets.rollout_logprob_T
        weight = log_q_V[y] if mu is None else (log_q_V[y] - mu[t].double()).exp()
        rows.append(-advantage * weight)
    loss_T = torch.stack(rows)
    return loss_T.detach(), torch.autograd.grad(loss_T.sum(), logits_TV)[0]


def assert_matches_reference(
    logits_TV: Tensor, teacher_TV: Tensor, targets: Targets, loss: LossConfig
) -> None:
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
    expected_T, expected_TV = reference(logits_TV, teacher_TV, targets, loss)
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad_TV.double(), expected_TV, rtol=2e-6, atol=1e-6)


def case(
    loss: LossConfig, k: int, *, rows: int = 9, vocab: int = 12
) -> tuple[Tensor, Tensor, Targets]:
    """Student logits, teacher logits and targets of random positions."""
    logits_TV, teacher_TV = random_logits(rows, vocab, seed=1), random_logits(rows, vocab, seed=2)
    tokens_T = torch.randint(0, vocab, (rows,), generator=rng(3))
    mu_TV = (logits_TV + 0.3 * random_logits(rows, vocab, seed=4)).log_softmax(-1)
    mu_T = mu_TV.gather(-1, tokens_T[:, None])[:, 0] if loss is OFF_POLICY else None
    return logits_TV, teacher_TV, build(raw_columns(teacher_TV, tokens_T, k, mu_T=mu_T))


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("loss", ALL, ids=name_of)
def test_with_k_equal_to_v_loss_and_gradient_are_those_of_the_full_vocabulary(
    loss: LossConfig,
) -> None:
    logits_TV, teacher_TV, targets = case(loss, k=12)
    assert bool((targets.tail_T == NEG_INF).all())
    assert_matches_reference(logits_TV, teacher_TV, targets, loss)


@pytest.mark.parametrize("loss", ALL, ids=name_of)
@pytest.mark.parametrize("k", [1, 4, 10, 11])
def test_with_a_smaller_support_they_are_those_of_its_categories(loss: LossConfig, k: int) -> None:
    logits_TV, teacher_TV, targets = case(loss, k=k)
    added_T = targets.valid_TS[:, -1]
    assert bool(added_T.any())  # some sampled tokens are outside the top-k
    assert k == 1 or not bool(added_T.all())
    assert not bool(targets.tail_clamped_T.any())
    assert_matches_reference(logits_TV, teacher_TV, targets, loss)


def test_rows_may_have_different_numbers_of_ids() -> None:
    logits_TV, teacher_TV, full = case(FORWARD, k=4)
    columns = raw_columns(teacher_TV, full.token_ids_T, 4)
    short = raw_columns(teacher_TV, full.token_ids_T, 2)
    columns["topk_ids_TK"][::2, 2:] = -1
    columns["topk_logprobs_TK"][::2, 2:] = NEG_INF
    columns["tail_T"][::2] = short["tail_T"][::2]
    ragged = build(columns)
    for loss in DIVERGENCES:
        assert_matches_reference(logits_TV, teacher_TV, ragged, loss)
        for targets, rows in [(build(short), slice(0, None, 2)), (full, slice(1, None, 2))]:
            expected_T, _ = loss_and_gradient(logits_TV, targets, loss)
            loss_T, _ = loss_and_gradient(logits_TV, ragged, loss)
            torch.testing.assert_close(loss_T[rows], expected_T[rows])


@pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
def test_a_student_tail_of_e_to_the_minus_17_keeps_its_gradient(loss: LossConfig) -> None:
    vocab, k = 5000, 64
    logits_TV = random_logits(1, vocab, sharp=1.0, seed=5)
    teacher_TV = random_logits(1, vocab, sharp=1.0, seed=6)
    logits_TV[:, :k] += 21.5
    teacher_TV[:, :k] += 12.0
    targets = build(raw_columns(teacher_TV, torch.tensor([3]), k))
    assert sorted(targets.ids_TS[0, :k].tolist()) == list(range(k))
    log_q_V = logits_TV[0].log_softmax(-1)
    assert -18.0 < float(log_q_V[k:].logsumexp(-1)) < -16.5
    _, grad_TV = loss_and_gradient(logits_TV.float(), targets, loss)
    _, expected_TV = reference(logits_TV.float().double(), teacher_TV, targets, loss)
    outside, expected_outside = grad_TV[:, k:].double(), expected_TV[:, k:]
    assert float((outside - expected_outside).norm() / expected_outside.norm()) < 2e-5


def rollout_kl(log_q_T: Tensor, targets: Targets) -> Tensor:
    """Return r - 1 - log r with r = q/μ; without sampling log-probabilities nothing."""
    if targets.rollout_logprob_T is None:
        return torch.zeros_like(log_q_T)
    ratio_T = (log_q_T - targets.rollout_logprob_T.double()).exp()
    return ratio_T - 1 - ratio_T.log()


def test_the_estimate_of_the_rollouts_kl_is_unbiased() -> None:
    random = torch.Generator().manual_seed(5)
    logits_V, other_V = torch.randn(2, 12, generator=random, dtype=torch.float64)
    log_mu_V, log_q_V = other_V.log_softmax(-1), logits_V.log_softmax(-1)
    exact = (log_mu_V.exp() * (log_mu_V - log_q_V)).sum()
    _, _, drawn = case(FORWARD, k=4)
    targets = drawn[torch.zeros(12, dtype=torch.int64)]
    each = replace(targets, token_ids_T=torch.arange(12), rollout_logprob_T=log_mu_V.float())
    _, found = token_losses(logits_V.expand(12, 12).float(), each, FORWARD)
    mean = (log_mu_V.exp() * found["rollout_kl"].double()).sum()  # over all that can be drawn
    torch.testing.assert_close(mean, exact, rtol=1e-5, atol=1e-6)


def test_the_diagnostics_are_those_of_the_definitions() -> None:
    logits_TV, teacher_TV, targets = case(JSD, k=4)
    _, found = token_losses(logits_TV, targets, JSD)
    assert set(found) == set(DIAGNOSTICS)
    assert not any(value_T.requires_grad for value_T in found.values())
    log_p_TV, log_q_TV = teacher_TV.log_softmax(-1), logits_TV.log_softmax(-1)
    support_TV = torch.zeros(9, 12, dtype=torch.bool).scatter(-1, targets.ids_TS, True)
    log_q_T = log_q_TV.gather(-1, targets.token_ids_T[:, None])[:, 0]
    expected = {
        "forward_kl": reference(logits_TV, teacher_TV, targets, FORWARD)[0],
        "reverse_kl": reference(logits_TV, teacher_TV, targets, REVERSE)[0],
        "sampled_reverse_kl": log_q_T - targets.token_logprob_T,
        "student_mass": (log_q_TV.exp() * support_TV).sum(-1),
        "teacher_mass": (log_p_TV.exp() * support_TV).sum(-1),
        "student_entropy": -(log_q_TV.exp() * log_q_TV).sum(-1),
        "token_logprob": log_q_T,
        "rollout_kl": rollout_kl(log_q_T, targets),
        "floored": torch.zeros(9),
        "tail_clamped": torch.zeros(9),
    }
    for name, value_T in expected.items():
        torch.testing.assert_close(found[name], value_T.float(), rtol=3e-6, atol=3e-6, msg=name)


# ---------------------------------------------------------------- divergences


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


# ---------------------------------------------------------------- policy gradient


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


# ---------------------------------------------------------------- targets


def test_the_sampled_token_takes_its_mass_out_of_the_tail() -> None:
    _, teacher_TV, targets = case(FORWARD, k=4)
    log_p_TV = teacher_TV.log_softmax(-1)
    inside_TV = torch.zeros(9, 12, dtype=torch.bool).scatter(-1, targets.ids_TS, True)
    expected_T = log_p_TV.masked_fill(inside_TV, NEG_INF).logsumexp(-1)
    torch.testing.assert_close(targets.tail_T.double(), expected_T, rtol=1e-6, atol=1e-6)
    assert not bool(targets.tail_clamped_T.any())


@settings(max_examples=100, deadline=None)
@given(
    vocab=st.integers(1, 40),
    share=st.floats(0, 1),
    sharp=st.sampled_from([0.0, 1.0, 5.0, 20.0]),
    seed=st.integers(0, 10**6),
)
def test_targets_are_normalised_after_float16_and_their_ids_are_exactly_the_support(
    vocab: int, share: float, sharp: float, seed: int
) -> None:
    teacher_TV = random_logits(5, vocab, sharp=sharp, seed=seed)
    tokens_T = torch.randint(0, vocab, (5,), generator=rng(seed))
    columns = raw_columns(teacher_TV, tokens_T, max(1, round(share * vocab)))
    targets = build(columns, topk_logprobs_TK=columns["topk_logprobs_TK"].half())
    log_p_TC = torch.cat([targets.logprobs_TS, targets.tail_T[:, None]], dim=-1).double()
    torch.testing.assert_close(log_p_TC.exp().sum(-1), torch.ones(5).double(), rtol=0, atol=1e-6)
    assert not bool(log_p_TC.isnan().any())
    for t in range(5):
        ids = targets.ids_TS[t][targets.valid_TS[t]].tolist()
        assert len(ids) == len(set(ids))
        assert set(ids) == {*targets.ids_TS[t].tolist(), int(tokens_T[t])}
        assert len(ids) < vocab or targets.tail_T[t] == NEG_INF


def test_a_token_that_rounding_made_larger_than_the_tail_is_clamped_and_counted() -> None:
    log_p = [math.log(0.9), math.log(0.06), math.log(0.04)]
    targets = build_targets(
        torch.tensor([[0]]),
        torch.tensor([[log_p[0]]]),
        tail_T=torch.tensor([math.log(0.1)]),
        token_ids_T=torch.tensor([1]),
        token_logprob_T=torch.tensor([math.log(0.101)]),
        weight_T=torch.ones(1),
        vocab_size=3,
    )
    assert bool(targets.tail_clamped_T.all())
    assert math.isfinite(float(targets.tail_T))
    loss_T, grad_TV = loss_and_gradient(torch.zeros(1, 3), targets, REVERSE)
    assert bool(loss_T.isfinite().all()) and bool(grad_TV.isfinite().all())
    assert float(token_losses(torch.zeros(1, 3), targets, REVERSE)[1]["tail_clamped"]) == 1.0


def bad_columns(columns: dict[str, Any]) -> dict[str, tuple[str, Tensor, str]]:
    """One impossible column each: which, its value, what the message says."""
    ids_TK, logprobs_TK = columns["topk_ids_TK"], columns["topk_logprobs_TK"]
    nan_T = torch.full((9,), math.nan)
    return {
        "duplicate": ("topk_ids_TK", ids_TK[:, [0, 1, 0, 3]], "duplicate"),
        "id = V": ("topk_ids_TK", ids_TK.masked_fill(ids_TK == 5, 12), "outside the vocabulary"),
        "id < 0": ("topk_ids_TK", ids_TK.masked_fill(ids_TK == 5, -1), "outside the vocabulary"),
        "token = V": ("token_ids_T", torch.full((9,), 12), "sampled id outside"),
        "token < 0": ("token_ids_T", torch.full((9,), -1), "sampled id outside"),
        "NaN": ("topk_logprobs_TK", logprobs_TK * math.nan, "top-k log-probability is NaN"),
        "positive": ("topk_logprobs_TK", -logprobs_TK, "top-k log-probability is NaN or positive"),
        "NaN token": ("token_logprob_T", nan_T, "sampled-token log-probability is NaN"),
        "NaN tail": ("tail_T", nan_T, "tail log-probability is NaN"),
        "NaN rollout": ("rollout_logprob_T", nan_T, "rollout log-probability is NaN"),
        "probability as tail": ("tail_T", columns["tail_T"].exp() * 0, "mass is not 1"),
        "half the mass": ("topk_logprobs_TK", logprobs_TK - 0.7, "mass is not 1"),
        "negative weight": ("weight_T", -torch.ones(9), "weight is negative"),
        "NaN weight": ("weight_T", nan_T, "not finite"),
        "one short": ("weight_T", torch.ones(8), "shapes disagree"),
        "flat": ("topk_logprobs_TK", logprobs_TK[:, 0], "shapes disagree"),
    }


BAD = bad_columns(raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4))


@pytest.mark.parametrize("name", BAD)
def test_impossible_teacher_data_are_refused(name: str) -> None:
    columns = raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4)
    column, value, message = BAD[name]
    build(columns)
    with pytest.raises(DataError, match=message):
        build(columns, **{column: value})


def test_the_message_names_the_first_bad_position_and_the_count() -> None:
    columns = raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4)
    columns["token_logprob_T"][[3, 7]] = math.nan
    with pytest.raises(DataError, match="at 2 of 9 positions, the first is 3"):
        build(columns)


def test_slices_and_moves_take_every_column_along() -> None:
    _, _, targets = case(OFF_POLICY, k=4)
    part = targets[2:5].to("cpu")
    assert len(part) == 3
    assert torch.equal(part.ids_TS, targets.ids_TS[2:5])
    assert part.rollout_logprob_T is not None and len(part.rollout_logprob_T) == 3
    chosen = targets[torch.tensor([8, 0])]
    assert torch.equal(chosen.token_ids_T, targets.token_ids_T[[8, 0]])


def test_logits_of_another_number_of_positions_are_refused() -> None:
    logits_TV, _, targets = case(FORWARD, k=4)
    with pytest.raises(DataError, match="9 target positions for 8"):
        token_losses(logits_TV[:8], targets, FORWARD)


# ---------------------------------------------------------------- edge cases


@pytest.mark.parametrize("loss", ALL, ids=name_of)
def test_untrained_positions_may_hold_anything_and_give_exactly_zero(loss: LossConfig) -> None:
    logits_TV, teacher_TV, plain = case(loss, k=4)
    columns = raw_columns(teacher_TV, plain.token_ids_T, 4, mu_T=plain.rollout_logprob_T)
    for column in ["topk_logprobs_TK", "tail_T", "token_logprob_T", "rollout_logprob_T"]:
        if columns[column] is not None:
            columns[column][:3] = math.nan
    columns["topk_ids_TK"][:3] = 99
    columns["token_ids_T"] = columns["token_ids_T"].clone()
    columns["token_ids_T"][:3] = -7
    columns["weight_T"][:3] = 0.0
    logits_TV[0] = math.nan
    logits_TV[1] = NEG_INF
    targets = build(columns)
    assert not bool(targets.tail_clamped_T.any())
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, loss)
    assert torch.equal(loss_T[:3], torch.zeros(3))
    assert torch.equal(grad_TV[:3], torch.zeros(3, 12).double())
    expected_T, expected_TV = loss_and_gradient(logits_TV[3:], plain[3:], loss)
    assert torch.equal(loss_T[3:], expected_T)
    assert torch.equal(grad_TV[3:], expected_TV)
    for value_T in token_losses(logits_TV, targets, loss)[1].values():
        assert torch.equal(value_T[:3], torch.zeros(3))


@pytest.mark.parametrize("loss", ALL, ids=name_of)
@pytest.mark.parametrize("rows", [0, 5])
def test_an_empty_mask_has_no_loss_and_no_gradient(loss: LossConfig, rows: int) -> None:
    logits_TV, teacher_TV, plain = case(loss, k=4)
    mu_T = plain.rollout_logprob_T
    columns = raw_columns(
        teacher_TV[:rows], plain.token_ids_T[:rows], 4, mu_T=None if mu_T is None else mu_T[:rows]
    )
    targets = build(columns, weight_T=torch.zeros(rows))
    loss_T, grad_TV = loss_and_gradient(logits_TV[:rows], targets, loss)
    assert torch.equal(loss_T, torch.zeros(rows))
    assert torch.equal(grad_TV, torch.zeros(rows, 12).double())


@pytest.mark.parametrize("loss", ALL, ids=name_of)
@pytest.mark.parametrize(("vocab", "k"), [(12, 1), (2, 1), (2, 2), (1, 1)])
def test_one_token_and_the_smallest_supports_work(loss: LossConfig, vocab: int, k: int) -> None:
    logits_TV, teacher_TV, targets = case(loss, k, rows=1, vocab=vocab)
    assert_matches_reference(logits_TV, teacher_TV, targets, loss)


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
    assert torch.equal(found["sampled_reverse_kl"], found["token_logprob"] + 30.0)
    assert not bool(targets.tail_clamped_T.any())


@pytest.mark.parametrize("loss", ALL, ids=name_of)
def test_bfloat16_logits_give_the_loss_of_their_float32_values(loss: LossConfig) -> None:
    logits_TV, _, targets = case(loss, k=4)
    low_TV = logits_TV.bfloat16()
    loss_T, grad_TV = loss_and_gradient(low_TV, targets, loss)
    expected_T, expected_TV = loss_and_gradient(low_TV.float(), targets, loss)
    assert loss_T.dtype == torch.float32 and grad_TV.dtype == torch.bfloat16
    assert torch.equal(loss_T, expected_T)
    assert torch.equal(grad_TV, expected_TV.bfloat16())


COLUMNS_USED = [
    *[(loss, column) for loss in DIVERGENCES for column in ("ids", "topk", "tail", "token")],
    (ON_POLICY, "token"),
    (OFF_POLICY, "token"),
    (OFF_POLICY, "rollout"),
]


@pytest.mark.parametrize(("loss", "corrupted"), COLUMNS_USED)
def test_a_corrupted_column_changes_the_gradient(loss: LossConfig, corrupted: str) -> None:
    logits_TV, teacher_TV, targets = case(loss, k=4)
    columns = raw_columns(teacher_TV, targets.token_ids_T, 4, mu_T=targets.rollout_logprob_T)
    change: dict[str, Tensor] = {
        "ids": {"topk_ids_TK": columns["topk_ids_TK"].roll(1, dims=-1)},
        "topk": {"topk_logprobs_TK": columns["topk_logprobs_TK"] - 0.02},
        "tail": {"tail_T": columns["tail_T"] - 0.05},
        "token": {"token_logprob_T": columns["token_logprob_T"] - 0.05},
        "rollout": {"rollout_logprob_T": columns["rollout_logprob_T"]},
    }[corrupted]
    if corrupted == "rollout":
        change = {"rollout_logprob_T": columns["rollout_logprob_T"] - 0.05}
    _, before_TV = loss_and_gradient(logits_TV, targets, loss)
    _, after_TV = loss_and_gradient(logits_TV, build(columns, **change), loss)
    assert float((after_TV - before_TV).abs().max()) > 1e-4
