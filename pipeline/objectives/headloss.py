"""The language-model head and the loss together, in chunks: [T, V] logits never exist at once.

Promises the same loss and gradients as the plain computation, with at most `chunk_tokens` rows of
logits held. Must not change the model. Shapes: T tokens, H hidden, V vocabulary,
N trained tokens of one chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from pipeline.models.head import Head
from pipeline.objectives.losses import DIAGNOSTICS, token_losses
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig


@dataclass
class _Gradients:
    """Sums over chunks; None where no gradient is wanted. Those of the head are float32."""

    hidden_TH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def zeros(cls, hidden_TH: Tensor, head: Head) -> "_Gradients":
        def zeros(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            if tensor is None or not (torch.is_grad_enabled() and tensor.requires_grad):
                return None
            return torch.zeros_like(tensor, dtype=dtype, requires_grad=False)

        return cls(
            hidden_TH=zeros(hidden_TH, hidden_TH.dtype),
            weight_VH=zeros(head.weight_VH, torch.float32),
            bias_V=zeros(head.bias_V, torch.float32),
        )

    @property
    def wanted(self) -> bool:
        return any(g is not None for g in (self.hidden_TH, self.weight_VH, self.bias_V))

    def add(self, rows_N: Tensor, grad_NV: Tensor, hidden_NH: Tensor, *, weight_VH: Tensor) -> None:
        if self.hidden_TH is not None:
            self.hidden_TH[rows_N] = (grad_NV @ weight_VH).to(self.hidden_TH.dtype)
        if self.weight_VH is not None:
            if grad_NV.dtype == hidden_NH.dtype == torch.float32:
                self.weight_VH.addmm_(grad_NV.t(), hidden_NH)  # no second [V, H] tensor
            else:
                self.weight_VH += grad_NV.t() @ hidden_NH
        if self.bias_V is not None:
            self.bias_V += grad_NV.sum(0, dtype=torch.float32)

    def paired(self, hidden_TH: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
        """Return each input that wants a gradient, with that gradient in its own type."""
        gradients = (self.hidden_TH, self.weight_VH, self.bias_V)
        inputs = (hidden_TH, head.weight_VH, head.bias_V)
        both = zip(inputs, gradients, strict=True)
        return [(x, g.to(x.dtype)) for x, g in both if x is not None and g is not None]


class _Ready(torch.autograd.Function):
    """A loss whose gradients are known already: `backward` scales them and hands them out."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, total: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(g * grad_total.to(g.dtype) for g in ctx.saved_tensors)


def head_loss(
    hidden_TH: Tensor,
    head: Head,
    targets: Targets,
    loss: LossConfig,
    *,
    chunk_tokens: int,
    scale: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `scale` times the weighted sum of token losses, and weighted sums of diagnostics.

    Gradients are formed here, in the forward pass, and handed out by `backward`; with autograd off
    none are formed. Positions of weight 0 cost nothing. Without any trained position the loss is 0
    and still connected to hidden states and head, so that every process sees the same collectives.

    Args:
        hidden_TH: last hidden states, float32 or bfloat16.
        head: the student's head; its tensors may require gradients or not.
        targets: teacher side of the same T positions, on the same device.
        loss: which loss, and its settings.
        chunk_tokens: most positions whose logits exist at once.
        scale: factor of the sum, such as 1 / trained tokens of the optimizer step.

    Raises:
        DataError: hidden states and targets differ in length.
    """
    targets.require_rows(len(hidden_TH))
    rows_T = (targets.weight_T > 0).nonzero()[:, 0]
    gradients = _Gradients.zeros(hidden_TH, head)
    total = torch.zeros((), dtype=torch.float32, device=hidden_TH.device)
    sums = {name: total.clone() for name in DIAGNOSTICS}
    with torch.no_grad():
        cast = head.to(hidden_TH.dtype)
        for start in range(0, len(rows_T), chunk_tokens):
            rows_N = rows_T[start : start + chunk_tokens]
            part, hidden_NH = targets[rows_N], hidden_TH[rows_N]
            chunk_loss, values = _chunk(hidden_NH, cast, part, loss, rows_N=rows_N, into=gradients)
            total += chunk_loss
            for name, value_N in values.items():
                sums[name] += (value_N * part.weight_T).sum()
        pairs = gradients.paired(hidden_TH, head)
    inputs, ready = [x for x, _ in pairs], tuple(g for _, g in pairs)
    total = _Ready.apply(total, ready, *inputs)  # type: ignore[no-untyped-call] # torch's gap
    return total * scale, sums


def _chunk(
    hidden_NH: Tensor,
    head: Head,
    part: Targets,
    loss: LossConfig,
    *,
    rows_N: Tensor,
    into: _Gradients,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and diagnostics of one chunk and add its gradients; its logits die on return."""
    product_NV = head.project(hidden_NH).requires_grad_(into.wanted)
    with torch.set_grad_enabled(into.wanted):
        loss_N, values = token_losses(head.finish(product_NV), part, loss)
        chunk_loss = (loss_N * part.weight_T).sum()
    if into.wanted:
        (grad_NV,) = torch.autograd.grad(chunk_loss, product_NV)
        into.add(rows_N, grad_NV, hidden_NH, weight_VH=head.weight_VH)
    return chunk_loss.detach(), values
