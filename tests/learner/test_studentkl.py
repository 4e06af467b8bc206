"""The reverse KL of the student itself, from what a tempered rollout drew, and its error."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.learner.batches import StepPlan
from pipeline.learner.metrics import step_metrics
from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from tests.support.lossreference import REVERSE, build, raw_columns


def test_of_tempered_draws_the_reverse_kl_is_that_of_the_student_and_has_an_error() -> None:
    random = torch.Generator().manual_seed(7)
    vocab, counts_V = 5, torch.tensor([6, 4, 3, 2, 1])  # draws as often as μ says, so exactly
    logits_V, teacher_V = torch.randn(2, vocab, generator=random, dtype=torch.float64)
    tokens_T = torch.arange(vocab).repeat_interleave(counts_V)
    mu_V = (counts_V / counts_V.sum()).double().log()
    columns = raw_columns(teacher_V.expand(16, vocab), tokens_T, 3, mu_T=mu_V[tokens_T])
    row_T = torch.arange(16) % 4
    targets = replace(build(columns), row_T=row_T, by_row=True)
    head = Head(weight_VH=torch.eye(vocab), bias_V=None)
    hidden_TH = logits_V.float().expand(16, vocab).contiguous()
    _, sums = head_loss(hidden_TH, head, targets, REVERSE, chunk_tokens=5, scale=1.0)
    log_q_V, log_p_V = logits_V.log_softmax(-1), teacher_V.log_softmax(-1)
    mean = float(sums["own_kl"] / sums["own_mass"])
    assert mean == pytest.approx(float((log_q_V.exp() * (log_q_V - log_p_V)).sum()), rel=1e-5)
    ratio_T = (log_q_V - mu_V)[tokens_T].exp()
    gap_T = (log_q_V - log_p_V)[tokens_T]
    left = [float((ratio_T * (gap_T - mean))[row_T == row].sum()) for row in range(4)]
    error = math.sqrt(sum(one**2 for one in left) * 4 / 3) / float(ratio_T.sum())
    totals = {name: float(value) for name, value in sums.items()} | {"loss": 0.0, "weight": 16.0}
    step = step_metrics(totals, StepPlan((), 16), 1.0, 1e-3)
    assert step["own_reverse_kl"] == pytest.approx(mean)
    assert step["own_reverse_kl_error"] == pytest.approx(error, rel=1e-4)
    assert not [name for name in step if name.startswith("own_") and "reverse" not in name]
