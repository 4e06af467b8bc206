"""Head and loss on a GPU against float64 on the CPU, for all objectives, both codecs' targets."""

import pytest
import torch
from torch import Tensor

from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from tests.support.lossreference import ALL, build, name_of, random_logits, raw_columns

pytestmark = pytest.mark.gpu

ROWS, HIDDEN, VOCAB, K, SCALE = 300, 64, 5_000, 16, 1e-2
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
    return build(moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [64, 1024])
@pytest.mark.parametrize("loss", ALL, ids=name_of)
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
