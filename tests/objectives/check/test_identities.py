"""The identities of a check: they hold for each objective, and are broken where they are broken."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.head import Head
from pipeline.objectives.check.identities import fused_error, mass_score, position_gradients
from pipeline.objectives.losses import token_losses
from pipeline.objectives.own.objective import OwnObjective
from pipeline.objectives.samples import Sample, token_sample
from pipeline.objectives.targets import Targets, build_targets
from schemas.config.loss import LossConfig
from tests.support.lossreference import ALL, SFT, name_of, random_logits, raw_columns

T, H, V = 40, 6, 30


def inputs() -> tuple[Tensor, Head]:
    random = torch.Generator().manual_seed(1)
    hidden_TH, weight_VH = (torch.randn(n, H, generator=random) for n in (T, V))
    return hidden_TH, Head(weight_VH)


def drawn(rows: int, *, scale: float = 1.0, k: int = 3) -> tuple[Tensor, Targets]:
    """Logits, and targets with tokens that these draw; `scale` is of the chances that are told."""
    logits_TV, teacher_TV = random_logits(1, V, sharp=0.7), random_logits(1, V, sharp=0.7, seed=9)
    log_mu_TV = logits_TV.log_softmax(-1).expand(rows, V)
    random = torch.Generator().manual_seed(2)
    tokens_T = log_mu_TV.exp().multinomial(1, generator=random)[:, 0]
    mu_T = log_mu_TV.gather(1, tokens_T[:, None])[:, 0] * scale
    columns = raw_columns(teacher_TV.expand(rows, V), tokens_T, k, mu_T=mu_T)
    sample: Sample = token_sample(tokens_T, columns["token_logprob_T"], mu_T)
    return logits_TV.expand(rows, V), build_targets(**columns, sample=sample)


@pytest.mark.parametrize("loss", [*ALL, SFT], ids=name_of)
def test_the_fused_head_is_the_plain_loss(loss: LossConfig) -> None:
    hidden_TH, head = inputs()
    columns: dict[str, Any] = raw_columns(random_logits(T, V, seed=3), torch.arange(T) % V, 4)
    columns["rollout_logprob_T"] = columns["token_logprob_T"]
    targets = build_targets(**columns)
    assert fused_error(hidden_TH, head, targets, loss, chunk_tokens=7) < 1e-5
    found_TH = position_gradients(hidden_TH, head, targets, loss, chunk_tokens=7)
    leaf_TH = hidden_TH.requires_grad_()
    loss_T, _ = token_losses(head.logits(leaf_TH), targets, loss)
    expected_TH = torch.autograd.grad(loss_T.sum(), leaf_TH)[0]
    torch.testing.assert_close(found_TH, expected_TH, rtol=1e-4, atol=1e-5)


def test_a_loss_that_depends_on_chunks_is_no_plain_one() -> None:
    hidden_TH, head = inputs()
    targets = build_targets(**raw_columns(random_logits(T, V, seed=3), torch.arange(T) % V, 4))

    def looks_around(log_q: Tensor, log_p: Tensor) -> Tensor:
        each = (log_q.exp() * (log_q - log_p)).sum(-1)
        return each * each.sum()

    loss = OwnObjective.of(LossConfig(kind="losses.py:f"), looks_around, gives_slope=False)
    assert fused_error(hidden_TH, head, targets, loss, chunk_tokens=7) > 0.1
    assert fused_error(hidden_TH, head, targets, loss, chunk_tokens=T) < 1e-5


def test_the_mass_of_a_sample_tells_whether_it_was_drawn_by_its_chances() -> None:
    logits_TV, targets = drawn(4000)
    score = mass_score(logits_TV, targets)
    assert score is not None and abs(score) < 3
    logits_TV, targets = drawn(4000, scale=1.2)
    score = mass_score(logits_TV, targets)
    assert score is not None and score > 8


def test_without_a_sample_there_is_no_mass_to_look_at() -> None:
    targets = build_targets(**raw_columns(random_logits(T, V), torch.arange(T) % V, 4))
    assert mass_score(random_logits(T, V), targets) is None
