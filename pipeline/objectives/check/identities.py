"""Identities that hold at any student: the fused head is the plain loss; chances fit the draws.

Pure: touches neither model nor store. Shapes: T positions, H hidden, V vocabulary, N ids of a
sample.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.head import Head
from pipeline.objectives.headloss import head_loss
from pipeline.objectives.losses import token_losses
from pipeline.objectives.sides import Sides, plain_sides
from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig


def position_gradients(
    hidden_TH: Tensor, head: Head, targets: Targets, loss: LossConfig, *, chunk_tokens: int
) -> Tensor:
    """Return the gradient of each position's weighted loss by its hidden state, by the fused head.

    Args:
        hidden_TH: last hidden states.
        head: the student's head.
        targets: teacher side of the same positions.
        loss: the objective.
        chunk_tokens: most positions whose logits exist at once.
    """
    leaf_TH, still = hidden_TH.detach().requires_grad_(), _still(head)
    total, _ = head_loss(leaf_TH, still, targets, loss, chunk_tokens=chunk_tokens, scale=1.0)
    (gradient_TH,) = torch.autograd.grad(total, leaf_TH)
    return gradient_TH


def fused_error(
    hidden_TH: Tensor, head: Head, targets: Targets, loss: LossConfig, *, chunk_tokens: int
) -> float:
    """Return how far the fused head is from autograd through all logits, relative to the latter.

    Of the gradients of hidden states and of the head's matrix, the larger one. What is a thousandth
    of the gradient of −log q(y) counts as nothing: there both are rounding.

    Args:
        hidden_TH: last hidden states, as few that all their logits fit into memory.
        head: the student's head.
        targets: teacher side of the same positions.
        loss: the objective.
        chunk_tokens: as of the learner.
    """
    leaf_TH = hidden_TH.detach().requires_grad_()
    own = replace(_still(head), weight_VH=head.weight_VH.detach().requires_grad_())
    total, _ = head_loss(leaf_TH, own, targets, loss, chunk_tokens=chunk_tokens, scale=1.0)
    found = torch.autograd.grad(total, [leaf_TH, own.weight_VH])
    wide_TH, wide = leaf_TH.detach().float().requires_grad_(), _still(head).to(torch.float32)
    inputs = [wide_TH, wide.weight_VH.requires_grad_()]
    logits_TV = wide.logits(wide_TH)
    loss_T, _ = token_losses(logits_TV, targets, loss)
    plain = torch.autograd.grad((loss_T * targets.weight_T).sum(), inputs, retain_graph=True)
    token_T = functional.cross_entropy(logits_TV, targets.token_ids_T, reduction="none")
    unit = torch.autograd.grad((token_T * targets.weight_T).sum(), inputs)
    return max(_apart(*three) for three in zip(found, plain, unit, strict=True))


def mass_score(logits_TV: Tensor, targets: Targets) -> float | None:
    """Return by how many standard errors a sample's ids have another mass than all ids beside S.

    The student's mass of a student's sample, over its chances, is expected to be all of the mass
    outside the support, whichever policy drew it; so is the teacher's of a teacher's. None without
    a sample.
    """
    sample = targets.sample
    if sample is None:
        return None
    sides = plain_sides(logits_TV.float(), targets)
    there_TN = sample.log_weights_TN > -math.inf
    log_q_TN = sample.logprobs_TN if sample.of == "teacher" else sides.student_sample_logprobs_TN
    each_TN = (log_q_TN + sample.log_weights_TN.masked_fill(~there_TN, 0.0)).exp()
    drawn_T = each_TN.masked_fill(~there_TN, 0.0).sum(-1).double()
    apart_T = (drawn_T - _outside(sides, of_teacher=sample.of == "teacher"))[targets.weight_T > 0]
    error = float(apart_T.std()) / math.sqrt(max(1, len(apart_T)))
    mean = float(apart_T.mean())
    return mean / max(error, _ROUNDING)


_ROUNDING = 1e-3
"""Least error of a mass: stored log-probabilities are rounded to 16 bits."""


def _outside(sides: Sides, *, of_teacher: bool) -> Tensor:
    """Return the mass outside the support, float64."""
    log_p_TC, log_q_TC, exists_TC = sides.categories
    whose_TC = log_p_TC if of_teacher else log_q_TC
    mass_TC = whose_TC.double().exp().masked_fill(~exists_TC, 0.0)
    return mass_TC[:, sides.num_support :].sum(-1)


def _apart(found: Tensor, plain: Tensor, unit: Tensor) -> float:
    """Return the norm of a difference as a share of the norm, and a thousandth of the unit's."""
    off, size = (found.double() - plain.double()).norm(), plain.double().norm()
    return float(off / (size + 1e-3 * unit.double().norm()).clamp(min=1e-300))


def _still(head: Head) -> Head:
    """Return a head that wants no gradient."""
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VH=head.weight_VH.detach(), bias_V=bias_V)
