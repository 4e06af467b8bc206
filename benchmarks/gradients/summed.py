"""Gradients summed over positions, of many losses after one pass of student and teacher.

A loss is looked at through the logits of its few ids and the sum of the others, as the fused head
of `pipeline/objectives/headloss.py` does, whose gradients these are.
Shapes: T positions, H hidden, V vocabulary, S support, G gathered ids, B tail buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.head import Head
from pipeline.objectives.losses import LOSSES
from pipeline.objectives.outside import LOWEST, PlainOutside
from pipeline.objectives.sides import Sides, View
from pipeline.objectives.targets import Targets
from pipeline.scores.buckets import bucket_of
from schemas.config.loss import LossConfig


@dataclass(frozen=True, eq=False)
class Look:
    """A student at T positions: what all losses share."""

    states_TH: Tensor
    """Hidden states, through which autograd sees the weights below."""
    logits_TV: Tensor
    max_T1: Tensor
    exp_TV: Tensor
    """exp(logit − largest)."""

    @classmethod
    @torch.no_grad()
    def at(cls, states_TH: Tensor, head: Head) -> "Look":
        """Return the look at some hidden states."""
        logits_TV = head.logits(states_TH)
        max_T1 = logits_TV.amax(1, keepdim=True)
        return cls(states_TH, logits_TV, max_T1, (logits_TV - max_T1).exp_())

    @torch.no_grad()
    def exact(self, teacher_TV: Tensor, loss: str) -> Tensor:
        """Return the gradient [T, V] of the logits of a sum over the whole vocabulary."""
        q_TV = self.exp_TV / self.exp_TV.sum(1, keepdim=True)
        if loss == "forward_kl":
            return q_TV - teacher_TV.softmax(-1)
        excess_TV = self.logits_TV - teacher_TV
        mean_T1 = torch.linalg.vecdot(q_TV, excess_TV)[:, None]
        return excess_TV.sub_(mean_T1).mul_(q_TV)

    def gradient(self, targets: Targets, loss: LossConfig) -> Tensor:
        """Return the gradient [T, V] of the logits of the sum of a loss over the positions."""
        exp_TV, buckets = self.exp_TV.clone(), targets.tail_TB.shape[1]
        exp_TV.scatter_(1, targets.ids_TS, 0.0)
        bucket_V = None if buckets == 1 else bucket_of(torch.arange(exp_TV.shape[1]), buckets)
        if bucket_V is None:
            sum_TB = exp_TV.sum(1, keepdim=True)
        else:
            sum_TB = exp_TV.new_zeros(len(exp_TV), buckets).index_add_(1, bucket_V, exp_TV)
        sum_TB.clamp_(min=1e-37)
        log_sum_TB = (sum_TB.log() + self.max_T1).clamp_(min=LOWEST).requires_grad_()
        logits_TG = self.logits_TV.gather(1, targets.gathered_TG).requires_grad_()
        view = View(logits_TG, log_sum_TB, torch.zeros(len(exp_TV)), exp_TV.shape[1])
        total = LOSSES[loss.kind](Sides(view, targets), loss).sum()
        of_ids_TG, of_sum_TB = torch.autograd.grad(
            total, (logits_TG, log_sum_TB), materialize_grads=True
        )
        outside = PlainOutside(exp_TV, sum_TB, log_sum_TB, self.max_T1[:, 0], bucket_V)
        grad_TV = outside.gradient(of_sum_TB, torch.float32)
        return grad_TV.scatter_add_(1, targets.gathered_TG, of_ids_TG)


class Total:
    """The gradient of head and weights, summed over batches."""

    def __init__(self, head: Head, weights: Sequence[Tensor]) -> None:
        """Begin at 0."""
        self._head, self._weights = head, weights
        self.of_head_VH = torch.zeros_like(head.weight_VH)
        self.of_weights = [torch.zeros_like(weight) for weight in weights]

    def add(self, states_TH: Tensor, grad_TV: Tensor) -> None:
        """Add a batch's positions: the graph of the hidden states stays."""
        with torch.no_grad():
            slope_TV = grad_TV * self._head.scale if self._head.scale != 1.0 else grad_TV
            self.of_head_VH.addmm_(slope_TV.t(), states_TH)
            of_states_TH = slope_TV @ self._head.weight_VH
        if self._weights:
            found = torch.autograd.grad(states_TH, self._weights, of_states_TH, retain_graph=True)
            for total, gradient in zip(self.of_weights, found, strict=True):
                total += gradient

    @property
    def parts(self) -> list[Tensor]:
        """Return all sums."""
        return [self.of_head_VH, *self.of_weights]


def likeness(found: Total, expected: Total) -> tuple[float, float]:
    """Return cosine and norm ratio of a gradient to the one that is right."""
    dot = norm = other = 0.0
    for a, b in zip(found.parts, expected.parts, strict=True):
        dot += float(torch.dot(a.flatten(), b.flatten()))
        norm += float(a.square().sum())
        other += float(b.square().sum())
    return dot / (norm * other) ** 0.5, (norm / other) ** 0.5
