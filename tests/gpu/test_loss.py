"""Head and loss on a GPU against float64 on the CPU, for all objectives, both codecs' targets."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.losses import token_losses
from pipeline.objectives.outside import plain_outside
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from tests.support.lossreference import ALL, build, name_of, random_logits, raw_columns

pytestmark = pytest.mark.gpu

ROWS, HIDDEN, VOCAB, K, SCALE = 300, 64, 5_000, 16, 1e-2
OF_RESPONSES = [
    LossConfig.model_validate({"kind": kind, "importance": "geometric", **keys})
    for kind, keys in (
        ("opd", {"policy": {"discount": 0.9, "baseline": "before", "standardize": True}}),
        ("reverse_kl", {"weights": {"prefix": 0.5, "divergence_clip": 0.5, "rescale": True}}),
    )
]
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest distance of a gradient from its reference, as a share of the reference's norm."""


def problem() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(ROWS, HIDDEN, generator=generator)
    weight_VH = torch.randn(VOCAB, HIDDEN, generator=generator) / 8
    tokens_T = torch.randint(VOCAB, (ROWS,), generator=generator)
    teacher_TV = random_logits(ROWS, VOCAB, seed=1)
    mu_T = torch.full((ROWS,), -5.0)
    return hidden_TH, weight_VH, raw_columns(teacher_TV, tokens_T, K, mu_T=mu_T)


def on(device: str, columns: dict[str, Tensor]) -> Targets:
    moved = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in columns.items()
    }
    return replace(build(moved), row_T=torch.arange(ROWS, device=device) // 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [64, 1024])
@pytest.mark.parametrize("loss", [*ALL, *OF_RESPONSES], ids=name_of)
def test_value_and_gradients_are_those_of_float64(
    loss: LossConfig, chunk: int, dtype: torch.dtype
) -> None:
    hidden_TH, weight_VH, columns = problem()
    hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
    exact = [x.double().requires_grad_() for x in (hidden_TH, weight_VH)]
    loss_T, _ = token_losses(exact[0] @ exact[1].t(), on("cpu", columns), loss)
    expected = loss_T.sum() * SCALE
    expected.backward()  # type: ignore[no-untyped-call] # torch's gap
    ours = [x.cuda().requires_grad_() for x in (hidden_TH, weight_VH)]
    found, _ = head_loss(
        ours[0], Head(ours[1]), on("cuda", columns), loss, chunk_tokens=chunk, scale=SCALE
    )
    found.backward()  # type: ignore[no-untyped-call] # torch's gap
    limit = LIMITS[dtype]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=limit)
    for mine, other in zip(ours, exact, strict=True):
        assert mine.grad is not None and other.grad is not None
        apart = (mine.grad.cpu().double() - other.grad).norm() / other.grad.norm()
        assert float(apart) <= limit, f"{float(apart):.1e} of the gradient's norm"


@pytest.mark.parametrize("vocab", [1, 2, 100, 4096, 32_001])
def test_the_kernel_looks_as_torchs_own_operations_do(vocab: int) -> None:
    """A row may have no id outside, one has -inf logits, one a mass far below its support's."""
    from pipeline.objectives.fused.kernels import fused_outside  # Triton comes with a GPU's torch

    generator = torch.Generator().manual_seed(vocab)
    logits_NV = 3 * torch.randn(50, vocab, generator=generator)
    ids_NS = torch.randint(vocab, (50, min(vocab, 7)), generator=generator)
    logits_NV[1, vocab // 2 :] = -torch.inf
    logits_NV[2].scatter_(0, ids_NS[2], 500.0)
    ids_NS[0] = torch.arange(min(vocab, 7))
    of_sum_NB = torch.randn(50, 1, generator=generator)
    inside_NV = torch.zeros(50, vocab, dtype=torch.bool).scatter_(1, ids_NS, True)
    live_N = (~inside_NV & (logits_NV > -torch.inf)).any(1)
    expected = plain_outside(logits_NV.double(), ids_NS)
    found = fused_outside(logits_NV.cuda(), ids_NS.cuda())
    for name in ("log_sum_NB", "mean_N"):
        ours, theirs = getattr(found, name).cpu(), getattr(expected, name).float()
        torch.testing.assert_close(ours[live_N], theirs[live_N], rtol=2e-5, atol=2e-5)
    of_sum_NB[~live_N] = 0.0
    theirs_NV = expected.gradient(of_sum_NB.double(), torch.float64).float()
    ours_NV = found.gradient(of_sum_NB.cuda(), torch.float32).cpu()
    torch.testing.assert_close(ours_NV, theirs_NV, rtol=2e-5, atol=1e-6)
