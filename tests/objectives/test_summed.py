"""The benchmark of supports: its gradients are those of the fused head, and of the whole sum."""

from pathlib import Path

import pytest
import torch

from benchmarks.gradients.forms import FORMS, Form
from benchmarks.gradients.pairs import model_pair, random_pair
from benchmarks.gradients.summed import Look, Total
from benchmarks.kit.inputs import Size, make_model
from benchmarks.support import scored_forms
from pipeline.objectives.headloss import head_loss

VOCAB = 120


@pytest.mark.parametrize("form", [form for form in FORMS if form.k <= 16], ids=lambda f: f.name)
def test_a_forms_gradient_is_that_of_the_fused_head(form: Form) -> None:
    pair = random_pair(VOCAB, "far", 0)
    rows_BT = pair.sampled(2)
    states_TH = pair.states(pair.student, rows_BT)
    look = Look.at(states_TH.detach(), pair.head)
    logits_TV = pair.teacher_head.logits(pair.states(pair.teacher, rows_BT))
    scored = scored_forms(pair, rows_BT, look, logits_TV)
    targets = scored.targets(form, scored.arrays(form)).in_step(100)
    total = Total(pair.head, pair.weights)
    total.add(states_TH, look.gradient(targets, form.config))

    head = pair.student.lm_head.requires_grad_(True)
    fused = head_loss(states_TH, pair.head, targets, form.config, chunk_tokens=50, scale=1.0)[0]
    expected = torch.autograd.grad(fused, [head.weight, *pair.weights], retain_graph=True)
    for found, right in zip(total.parts, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl"])
def test_the_exact_gradient_is_autograds(loss: str) -> None:
    pair = random_pair(VOCAB, "near", 0)
    states_TH = pair.states(pair.student, pair.sampled(1)).detach()
    teacher_TV = torch.randn(len(states_TH), VOCAB)
    logits_TV = pair.head.logits(states_TH).detach().requires_grad_()
    log_q_TV, log_p_TV = logits_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
    one, other = (log_q_TV, log_p_TV) if loss == "reverse_kl" else (log_p_TV, log_q_TV)
    (expected,) = torch.autograd.grad((one.exp() * (one - other)).sum(), logits_TV)
    found = Look.at(states_TH, pair.head).exact(teacher_TV, loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_models_vocabulary_is_cut_to_the_ids_that_it_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gradients.pairs.MOST_IDS", 50)
    make_model(tmp_path, Size("cut", hidden=32, layers=2, vocab=90), seed=0)
    pair = model_pair(tmp_path, "near", 0)
    assert pair.vocab == len(pair.head.weight_VH) == 50
    assert int(pair.sampled(2).max()) < 50
