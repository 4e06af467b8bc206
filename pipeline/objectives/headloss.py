"""The language-model head and the loss together, in chunks: [T, V] logits never exist at once.

Promises the same loss and gradients as the plain computation, with at most `chunk_tokens` rows of
logits held, in float32 whatever the model's type. Must not change the model.
Shapes: T tokens, H hidden, V vocabulary, N trained tokens of one chunk, G gathered ids, D figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.models.head import Head
from pipeline.objectives.diagnostics import DIAGNOSTICS
from pipeline.objectives.fused.matmuls import Sum, product, takes_low
from pipeline.objectives.losses import look, losses_of
from pipeline.objectives.outside import Outside, plain_outside
from pipeline.objectives.sides import Sides, View
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens.seen import Seen, no_look, planned
from pipeline.scores.buckets import bucket_of
from schemas.config.loss import LossConfig

MAX_LOG_RATIO = 20.0


@dataclass
class _Gradients:
    """Sums over chunks; None where no gradient is wanted."""

    hidden_TH: Tensor | None
    weight_VH: Sum | None
    bias_V: Tensor | None

    @classmethod
    def zeros(cls, hidden_TH: Tensor, head: Head) -> "_Gradients":
        def wanted(tensor: Tensor | None) -> bool:
            return tensor is not None and torch.is_grad_enabled() and tensor.requires_grad

        weight_VH, bias_V = head.weight_VH, head.bias_V
        return cls(
            hidden_TH=torch.zeros_like(hidden_TH) if wanted(hidden_TH) else None,
            weight_VH=Sum(weight_VH) if wanted(weight_VH) else None,
            bias_V=torch.zeros_like(bias_V, dtype=torch.float32)
            if bias_V is not None and wanted(bias_V)
            else None,
        )

    @property
    def wanted(self) -> bool:
        return any(g is not None for g in (self.hidden_TH, self.weight_VH, self.bias_V))

    def add(
        self, rows_N: Tensor, grad_NV: Tensor, hidden_NH: Tensor, *, head: Head, alone: bool
    ) -> None:
        if self.hidden_TH is not None:
            self.hidden_TH[rows_N] = grad_NV @ head.weight_VH
        if self.weight_VH is not None:
            self.weight_VH.add(grad_NV.t(), hidden_NH, alone=alone)
        if self.bias_V is not None:
            self.bias_V += grad_NV.sum(0, dtype=torch.float32)

    def paired(self, hidden_TH: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
        """Return each input that wants a gradient, with that gradient in its own type."""
        weight_VH = None if self.weight_VH is None else self.weight_VH.total()
        gradients = (self.hidden_TH, weight_VH, self.bias_V)
        inputs = (hidden_TH, head.weight_VH, head.bias_V)
        both = zip(inputs, gradients, strict=True)
        return [(x, g.to(x.dtype)) for x, g in both if x is not None and g is not None]


class _Ready(torch.autograd.Function):
    """A loss whose gradients are known already: `backward` scales them and hands them out, once.

    So nobody else holds them, and what is as large as the head need not be copied.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were handed out: compute it again")
        return None, None, *(g.mul_(grad_total) for g in gradients)


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
    sums_D = total.new_zeros(len(DIAGNOSTICS))
    now_T = torch.zeros_like(targets.weight_T)
    with torch.no_grad():
        cast = head.to(hidden_TH.dtype)
        chunks = _Chunks(cast if takes_low(hidden_TH) else head.to(torch.float32), loss, scale)
        if loss.is_planned:
            seen = chunks.seen(hidden_TH, targets, torch.split(rows_T, chunk_tokens))
            targets = planned(targets, seen, loss)
        for start in range(0, len(rows_T), chunk_tokens):
            rows_N = rows_T[start : start + chunk_tokens]
            part, hidden_NH = targets[rows_N], hidden_TH[rows_N]
            chunk_loss, values, gradient = chunks.look(hidden_NH, part)
            if gradients.wanted:
                alone = len(rows_T) <= chunk_tokens
                gradients.add(rows_N, gradient(), hidden_NH, head=cast, alone=alone)
            total += chunk_loss
            now_T[rows_N] = values["student_token_logprob"]
            sums_D += (torch.stack(list(values.values())) * part.weight_T).sum(-1)
            del gradient  # it holds a chunk's logits
        pairs = gradients.paired(hidden_TH, head)
        sums = dict(zip(DIAGNOSTICS, sums_D, strict=True)) | _of_rows(now_T, targets, loss)
    inputs, ready = [x for x, _ in pairs], [g for _, g in pairs]
    total = _Ready.apply(total, ready, *inputs)  # type: ignore[no-untyped-call] # torch's gap
    return total, sums


def _of_rows(now_T: Tensor, targets: Targets, loss: LossConfig) -> dict[str, Tensor]:
    """Return sums over responses of log q − log p weighed by q/μ, and of squares: for its error.

    Args:
        now_T: log q of the sampled tokens.
        targets: of the same positions.
        loss: says how low log p may be.
    """
    mu_T, row_T = targets.rollout_logprob_T, targets.row_T
    if not targets.by_row or row_T is None or mu_T is None:
        return {}
    live_T = targets.weight_T > 0
    gap_T = now_T - targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor)
    weight_T = (now_T - mu_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().masked_fill(~live_T, 0.0)
    rows = int(row_T.max()) + 1 if len(row_T) else 0
    zeros_B = torch.zeros(rows, dtype=torch.float64, device=row_T.device)
    mass_B = zeros_B.index_add(0, row_T, weight_T.double())
    kl_B = zeros_B.index_add(0, row_T, (weight_T * gap_T).double())
    return {
        "own_kl": kl_B.sum(),
        "own_mass": mass_B.sum(),
        "own_kl_kl": kl_B @ kl_B,
        "own_kl_mass": kl_B @ mass_B,
        "own_mass_mass": mass_B @ mass_B,
        "own_rows": (mass_B > 0).sum(),
    }


class _Chunks:
    """The logits of one chunk after the other: on a CPU, in a buffer that stays."""

    def __init__(self, head: Head, loss: LossConfig, scale: float) -> None:
        self._head, self._loss, self._scale = head, loss, scale
        self._buffer: Tensor | None = None

    def look(
        self, hidden_NH: Tensor, part: Targets
    ) -> tuple[Tensor, dict[str, Tensor], Callable[[], Tensor]]:
        """Return a chunk's loss, its diagnostics, and what gives the gradient of its product.

        That is [N, V], takes the place of the logits, and can be had once.
        """
        head, logits_NV = self._head, self._logits(hidden_NH)
        slope_NV = head.slope_of_cap(logits_NV)
        ids_NG, cold = part.gathered_TG, _tempered(logits_NV, part)
        view, outside = _viewed(logits_NV, part)
        inputs = [view.logits_TG.requires_grad_(), view.outside_TB.requires_grad_()]
        inputs += [] if cold is None else [cold.outside.log_sum_NB.requires_grad_()]
        with torch.enable_grad():
            sides = Sides(view, part, None if cold is None else cold.sides(view))
            loss_N, values = losses_of(sides, self._loss)
            chunk_loss = (loss_N * part.weight_T).sum() * self._scale

        def gradient() -> Tensor:
            of_ids_NG, of_sum_NB, *of_cold = torch.autograd.grad(
                chunk_loss, inputs, materialize_grads=True
            )
            dtype = hidden_NH.dtype if slope_NV is None else torch.float32
            if cold is None:
                grad_NV = outside.gradient(of_sum_NB * head.scale, dtype)
            else:
                grad_NV = cold.gradient(of_cold[0] * head.scale, dtype)
                if self._loss.rl_weight:  # the only term at temperature 1 that has a gradient
                    grad_NV += outside.gradient(of_sum_NB * head.scale, dtype)
            grad_NV.scatter_add_(1, ids_NG, (of_ids_NG * head.scale).to(dtype))
            return grad_NV if slope_NV is None else grad_NV.mul_(slope_NV).to(hidden_NH.dtype)

        return chunk_loss.detach(), values, gradient

    def seen(self, hidden_TH: Tensor, targets: Targets, chunks: Sequence[Tensor]) -> Seen:
        """Return what the student says of all positions, where the objective asks beforehand."""
        seen = no_look(targets)
        for rows_N in chunks if self._loss.of_responses else ():
            part = targets[rows_N]
            view, _ = _viewed(self._logits(hidden_TH[rows_N]), part)
            for all_T, values_N in zip(seen, look(Sides(view, part), self._loss), strict=True):
                all_T[rows_N] = values_N
        return seen

    def _logits(self, hidden_NH: Tensor) -> Tensor:
        head = self._head
        out_NV = self._of_rows(hidden_NH)
        return head.finish_(product(hidden_NH, head.weight_VH, head.bias_V, out_NV=out_NV))

    def _of_rows(self, hidden_NH: Tensor) -> Tensor | None:
        """Return the first rows of the buffer; a GPU's allocator keeps its own."""
        if hidden_NH.is_cuda:
            return None
        if self._buffer is None:  # the first chunk is the largest
            self._buffer = torch.empty(len(hidden_NH), len(self._head.weight_VH))
        return self._buffer[: len(hidden_NH)]


def _viewed(logits_NV: Tensor, part: Targets) -> tuple[View, Outside]:
    """Return what objectives see of a chunk's logits, which are overwritten."""
    logits_NG, outside = logits_NV.gather(1, part.gathered_TG), _outside(logits_NV, part)
    view = View(logits_NG, outside.log_sum_NB, outside.mean_N, logits_NV.shape[1])
    return view, outside


@dataclass(frozen=True, eq=False)
class _Tempered:
    """The ids outside the support at another temperature, in a buffer of their own."""

    outside: Outside
    targets: Targets
    temperature: float

    def sides(self, view: View) -> Sides:
        """Return both sides at the temperature; gradients go to the logits at temperature 1."""
        cold = View(
            logits_TG=view.logits_TG / self.temperature,
            outside_TB=self.outside.log_sum_NB,
            outside_mean_T=self.outside.mean_N,
            vocab_size=view.vocab_size,
        )
        return Sides(cold, self.targets)

    def gradient(self, of_log_sum_NB: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient of the logits at temperature 1."""
        return self.outside.gradient(of_log_sum_NB / self.temperature, dtype)


def _tempered(logits_NV: Tensor, part: Targets) -> _Tempered | None:
    """Return a look at a chunk's logits at the objective's temperature, None where that is 1."""
    if part.tempered is None:
        return None
    cold, temperature = part.at(part.tempered), part.tempered.temperature
    return _Tempered(_outside(logits_NV / temperature, cold), cold, temperature)


def _outside(logits_NV: Tensor, part: Targets) -> Outside:
    """Return the ids outside the support by the fastest way that the device has."""
    num_buckets = part.tail_TB.shape[1]
    if logits_NV.is_cuda and num_buckets == 1:
        from pipeline.objectives.fused.kernels import fused_outside

        return fused_outside(logits_NV, part.ids_TS)
    ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    buckets_V = None if num_buckets == 1 else bucket_of(ids_V, num_buckets)
    return plain_outside(logits_NV, part.ids_TS, buckets_V=buckets_V, num_buckets=num_buckets)
