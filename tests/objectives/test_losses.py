"""All losses against the slow reference, and what holds for every one of them."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.objectives.diagnostics import DIAGNOSTICS
from pipeline.objectives.losses import LOSSES, token_losses
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig, LossKind
from schemas.errors import DataError
from tests.support.lossreference import (
    ALL,
    DIVERGENCES,
    FORWARD,
    JSD,
    NEG_INF,
    OFF_POLICY,
    ON_POLICY,
    REVERSE,
    SFT,
    TVD,
    assert_matches_reference,
    build,
    case,
    loss_and_gradient,
    name_of,
    random_logits,
    raw_columns,
    reference,
)


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


def test_what_a_teacher_has_sampled_is_learnt_by_its_log_probability() -> None:
    logits_TV, tokens_T = random_logits(6, 9), torch.arange(6)
    targets = build(raw_columns(random_logits(6, 9, seed=1), tokens_T, 4))
    loss_T, grad_TV = loss_and_gradient(logits_TV, targets, SFT)
    log_q_TV = logits_TV.log_softmax(-1)
    expected_TV = log_q_TV.exp() - torch.nn.functional.one_hot(tokens_T, 9)
    torch.testing.assert_close(
        loss_T.double(), -log_q_TV[torch.arange(6), tokens_T], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(grad_TV.double(), expected_TV, rtol=1e-5, atol=1e-6)


def test_every_kind_of_the_configuration_has_its_loss_and_is_tested_here() -> None:
    assert set(LOSSES) == set(get_args(LossKind)) == {loss.kind for loss in [*ALL, SFT]}


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
        "student_token_logprob": log_q_T,
        "rollout_kl": rollout_kl(log_q_T, targets),
        "floored": torch.zeros(9),
        "tail_clamped": torch.zeros(9),
    }
    for name, value_T in expected.items():
        torch.testing.assert_close(found[name], value_T.float(), rtol=3e-6, atol=3e-6, msg=name)


def test_logits_of_another_number_of_positions_are_refused() -> None:
    logits_TV, _, targets = case(FORWARD, k=4)
    with pytest.raises(DataError, match="9 target positions for 8"):
        token_losses(logits_TV[:8], targets, FORWARD)


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
    torch.testing.assert_close(loss_T[3:], expected_T, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad_TV[3:], expected_TV, rtol=1e-6, atol=1e-7)
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
    *[
        (loss, column)
        for loss in DIVERGENCES
        if loss is not TVD  # its gradient is one of signs
        for column in ("ids", "topk", "tail", "token")
    ],
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
