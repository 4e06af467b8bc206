"""Both sides at another temperature, against the whole vocabulary."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets
from pipeline.objectives.tempering import cool, with_temperature
from schemas.config.loss import LossConfig
from schemas.config.objective.weights import WeightsSection
from schemas.errors import ConfigError
from tests.support.lossreference import (
    DIVERGENCES,
    FORWARD,
    build,
    case,
    divergence,
    loss_and_gradient,
    merged,
    name_of,
    random_logits,
    raw_columns,
)

VOCAB = 12
TEMPERATURES = st.sampled_from([0.3, 0.5, 0.9, 1.2, 2.0, 5.0])


def teacher(seed: int) -> Tensor:
    """Log-probabilities with ties, and of some ids -inf."""
    random = torch.Generator().manual_seed(seed)
    logits_TV = (2.0 * torch.randn(5, VOCAB, generator=random, dtype=torch.float64)).round(
        decimals=1
    )
    logits_TV[torch.rand(5, VOCAB, generator=random) < 0.2] = -math.inf
    logits_TV[:, 0] = 1.0
    return logits_TV.log_softmax(-1)


def parts(log_p_TV: Tensor, k: int, token: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, log-probabilities and validity of top-k and a token, and the mass that is left."""
    ids_TK = log_p_TV.topk(k, dim=-1).indices
    token_T1 = torch.full((len(log_p_TV), 1), token)
    ids_TS = torch.cat([ids_TK, token_T1], dim=-1)
    valid_TS = torch.cat([ids_TK >= 0, ~(ids_TK == token_T1).any(-1, keepdim=True)], dim=-1)
    left_TV = log_p_TV.scatter(-1, ids_TS, -math.inf)
    logprobs_TS = log_p_TV.gather(-1, ids_TS).masked_fill(~valid_TS, -math.inf)
    return ids_TS, logprobs_TS, valid_TS, left_TV.logsumexp(-1)


@given(st.integers(0, 99), st.integers(1, VOCAB), st.integers(0, VOCAB - 1), TEMPERATURES)
def test_with_a_scored_log_z_support_and_tail_are_those_of_the_whole_vocabulary(
    seed: int, k: int, token: int, temperature: float
) -> None:
    log_p_TV = teacher(seed)
    ids_TS, logprobs_TS, valid_TS, tail_T = parts(log_p_TV, k, token)
    cold_TV = log_p_TV / temperature
    log_z_T = cold_TV.logsumexp(-1)
    cold_TV = cold_TV - log_z_T[:, None]
    rest_T = cold_TV.scatter(-1, ids_TS, -math.inf).logsumexp(-1)
    given_: dict[str, Any] = {"temperature": temperature, "vocab_size": VOCAB}
    found = cool(logprobs_TS, valid_TS, tail_T, log_z_T=log_z_T, **given_)
    expected_TS = cold_TV.gather(-1, ids_TS).masked_fill(~valid_TS, -math.inf)
    close: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(found.logprobs_TS.exp(), expected_TS.exp(), **close)
    torch.testing.assert_close(found.tail_T.exp(), rest_T.exp(), **close)
    assert bool((found.uncertain_T == 0).all())
    unknown = cool(logprobs_TS, valid_TS, tail_T, log_z_T=log_z_T * math.nan, **given_)
    off_T = (unknown.log_z_T - log_z_T).abs()
    assert bool((off_T <= unknown.uncertain_T + 1e-10).all())  # the truth is inside the bounds
    full_T = tail_T == -math.inf
    torch.testing.assert_close(unknown.log_z_T[full_T], log_z_T[full_T], **close)


def tempered_case(loss: LossConfig, k: int) -> tuple[Tensor, Tensor, Targets]:
    """Student, teacher, and targets that have the teacher at the loss's temperature too."""
    logits_TV, teacher_TV, targets = case(loss, k=k)
    log_z_T = (teacher_TV.log_softmax(-1) / loss.temperature).logsumexp(-1)
    cold = with_temperature(targets, loss.temperature, log_z_T, vocab_size=VOCAB)
    return logits_TV, teacher_TV, cold


@pytest.mark.parametrize("k", [1, 4, 11, 12])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("kind", DIVERGENCES, ids=name_of)
def test_value_and_gradient_are_those_of_both_sides_at_the_temperature(
    kind: LossConfig, temperature: float, k: int
) -> None:
    loss = kind.model_copy(update={"temperature": temperature})
    logits_TV, teacher_TV, targets = tempered_case(loss, k)
    found_T, found_TV = loss_and_gradient(logits_TV, targets, loss)
    leaf_TV, rows = logits_TV.clone().requires_grad_(), []
    for t, z_V in enumerate(leaf_TV / temperature):
        ids = targets.ids_TS[t][targets.valid_TS[t]].tolist()
        sides = (teacher_TV[t] / temperature).log_softmax(-1), z_V.log_softmax(-1)
        rows.append(divergence(merged(sides[0], ids), merged(sides[1], ids), loss))
    expected_TV = torch.autograd.grad(torch.stack(rows).sum(), leaf_TV)[0]
    # scores are float32, so what they leave of 1 is known to 1e-7 of the whole
    torch.testing.assert_close(found_T.double(), torch.stack(rows).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_TV.double(), expected_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [{}, {"prefix": 0.5, "divergence_share": 0.5}], ids=len)
@pytest.mark.parametrize("rl_weight", [0.0, 0.7])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_fused_head_gives_what_the_plain_form_gives(
    temperature: float, rl_weight: float, weights: dict[str, float]
) -> None:
    changes: dict[str, Any] = {"temperature": temperature, "rl_weight": rl_weight}
    changes["weights"] = WeightsSection.model_validate(weights)
    loss = LossConfig(kind="reverse_kl").model_copy(update=changes)
    _, _, targets = tempered_case(loss, 4)
    advantage_T = torch.linspace(-1.0, 1.0, len(targets))
    mu_T = targets.token_logprob_T - 0.1
    targets = replace(targets, advantage_T=advantage_T, rollout_logprob_T=mu_T)
    targets = replace(targets, row_T=torch.arange(len(targets)) // 4)
    random = torch.Generator().manual_seed(7)
    hidden_TH = torch.randn(len(targets), 5, generator=random).requires_grad_()
    weight_VH = torch.randn(VOCAB, 5, generator=random).requires_grad_()
    loss_T, values = token_losses(hidden_TH @ weight_VH.t(), targets, loss)
    expected = torch.autograd.grad(loss_T.sum(), [hidden_TH, weight_VH])
    head = Head(weight_VH, None)
    total, sums = head_loss(hidden_TH, head, targets, loss, chunk_tokens=4, scale=1.0)
    torch.testing.assert_close(total.detach(), loss_T.sum().detach())
    for found, gradient in zip(
        torch.autograd.grad(total, [hidden_TH, weight_VH]), expected, strict=True
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)
    for name, value_T in values.items():
        torch.testing.assert_close(sums[name], value_T.sum(), rtol=1e-4, atol=1e-4)


def test_what_is_told_beside_the_loss_stays_at_temperature_1() -> None:
    loss = FORWARD.model_copy(update={"temperature": 2.0})
    logits_TV, _, targets = tempered_case(loss, 4)
    warm_T, warm = token_losses(logits_TV, replace(targets, tempered=None), FORWARD)
    cold_T, cold = token_losses(logits_TV, targets, loss)
    assert not torch.allclose(warm_T, cold_T)
    for name, value_T in warm.items():
        torch.testing.assert_close(cold[name], value_T, rtol=0.0, atol=0.0)


def test_a_log_z_that_is_not_known_well_enough_is_refused_with_what_to_do() -> None:
    teacher_TV = random_logits(3, VOCAB, sharp=0.1)
    targets = build(raw_columns(teacher_TV, torch.tensor([0, 1, 2]), 4))
    with pytest.raises(ConfigError, match=r"uncertain by up to .* Set score.temperatures = \[2\]"):
        with_temperature(targets, 2.0, None, vocab_size=VOCAB)
    peaked = build(raw_columns(100.0 * teacher_TV, torch.tensor([0, 1, 2]), 4))
    found = with_temperature(peaked, 0.5, None, vocab_size=VOCAB)
    assert found.tempered is not None and bool(found.tempered.logprobs_TS[:, 0].isfinite().all())
    nothing = build(raw_columns(teacher_TV, torch.tensor([0, 1, 2]), 4), weight_T=torch.zeros(3))
    assert with_temperature(nothing, 2.0, None, vocab_size=VOCAB).tempered is not None


def test_rounded_scores_leave_a_tail_that_can_be() -> None:
    log_p_TV = teacher(3)
    _, logprobs_TS, valid_TS, tail_T = parts(log_p_TV, 4, 0)
    for temperature in (0.3, 2.0):
        log_z_T = (log_p_TV / temperature).logsumexp(-1)
        for shift in (-0.02, 0.02):
            moved_TS = (logprobs_TS + shift).clamp(max=0.0)
            given_: dict[str, Any] = {"temperature": temperature, "vocab_size": VOCAB}
            found = cool(moved_TS, valid_TS, tail_T, log_z_T=log_z_T, **given_)
            whole_T = torch.logaddexp(found.logprobs_TS.logsumexp(-1), found.tail_T)
            torch.testing.assert_close(whole_T, torch.zeros_like(whole_T), rtol=0.0, atol=1e-12)
            assert bool((found.tail_T[tail_T > -math.inf] > -math.inf).all())
