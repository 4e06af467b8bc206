"""The language-model head and the loss together, in chunks: [T, V] logits never exist at once.

Promises the same loss and gradients as the plain computation, with at most `chunk_tokens` rows of
logits held. Must not change the model. Shapes: T tokens, H hidden, V vocabulary,
N trained tokens of one chunk.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from pipeline.losses import DIAGNOSTICS, token_losses
from pipeline.targets import Targets
from schemas.config import LossConfig
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Head:
    """What turns the last hidden state into logits: matrix, bias, multiplier, soft cap."""

    weight_VH: Tensor
    """Matrix of the head, often shared with the input embedding."""
    bias_V: Tensor | None = None
    """Bias, or None."""
    softcap: float | None = None
    """Logits z become softcap·tanh(z/softcap); None leaves them."""
    scale: float = 1.0
    """Multiplier of the logits, before the soft cap."""

    def to(self, dtype: torch.dtype) -> "Head":
        """Return the same head with matrix and bias in `dtype`."""
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return replace(self, weight_VH=self.weight_VH.to(dtype), bias_V=bias_V)

    def project(self, hidden_TH: Tensor) -> Tensor:
        """Return the product with the matrix and the bias, in the type of the hidden states."""
        return F.linear(hidden_TH, self.weight_VH, self.bias_V)

    def finish(self, product_TV: Tensor) -> Tensor:
        """Return float32 logits from a product: multiplier, then soft cap."""
        logits_TV = product_TV.float()
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        if self.softcap is not None:
            logits_TV = self.softcap * torch.tanh(logits_TV / self.softcap)
        return logits_TV

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Return the float32 logits of hidden states of any leading shape."""
        return self.finish(self.project(hidden_TH))


def head_of(model: "PreTrainedModel") -> Head:
    """Return the head of a Hugging Face causal language model; the tensors are the model's own.

    Raises:
        ConfigError: the model has no plain linear head (such as one wrapped by an adapter).
    """
    linear = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers' gap
    if not isinstance(linear, torch.nn.Linear):
        raise ConfigError(
            f"{type(model).__name__}: the output embedding is {type(linear).__name__}, expected a "
            "plain Linear; train adapters on other layers, or choose a causal language model"
        )
    config = model.config.get_text_config()
    multiplier = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return Head(
        weight_VH=linear.weight,
        bias_V=linear.bias,
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=multiplier / divisor,
    )


@torch.no_grad()
def check_head(model: "PreTrainedModel", head: Head, input_ids: Tensor) -> None:
    """Raise unless `head` on the decoder's last hidden state gives the model's own logits.

    Args:
        model: a causal language model; its training mode is restored.
        head: what `head_of` returned for it.
        input_ids: int64 probe, sequences by tokens, a few tokens are enough.

    Raises:
        ConfigError: the logits differ, so the model does more after its head than is known here.
    """
    training = model.training
    model.train(False)
    try:
        decoder = model.get_decoder()  # type: ignore[no-untyped-call] # transformers' gap
        hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        expected = model(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        model.train(training)
    difference = float((head.logits(hidden) - expected).abs().max())
    allowed = max(1e-4, 4 * torch.finfo(hidden.dtype).eps) * float(expected.abs().max())
    if not difference <= allowed:
        raise ConfigError(
            f"{type(model).__name__}: logits differ by {difference:.3g} from those of the head, at "
            f"most {allowed:.3g} is expected: the model changes its logits in a way that "
            "`pipeline.head.head_of` does not know; teach it, or choose another student"
        )


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
