"""Distillation losses of flat token positions against a cached teacher support, in nats.

Pure: no I/O, no random numbers, no state. Shapes: T tokens (all sequences of a batch, end to end),
S support = top-k and sampled token, C categories = S and one tail bucket, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.targets import Targets
from schemas.config.loss import LossConfig
from schemas.errors import DataError

DIAGNOSTICS = (
    "forward_kl",
    "reverse_kl",
    "sampled_reverse_kl",
    "student_mass",
    "teacher_mass",
    "student_entropy",
    "token_logprob",
    "rollout_kl",
    "floored",
    "tail_clamped",
)
"""Names of the per-token diagnostics that `token_losses` returns."""


_NEG_INF = -math.inf


_MAX_LOG_RATIO = 20.0


class _Categories(NamedTuple):
    """Both sides on support and tail bucket; `log_q_TC` is finite also where `exists_TC` is not."""

    log_p_TC: Tensor
    log_q_TC: Tensor
    exists_TC: Tensor


def token_losses(
    logits_TV: Tensor, targets: Targets, loss: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the unweighted loss of each token in nats, and detached per-token diagnostics.

    Positions of weight 0 have loss 0, diagnostics 0 and zero gradient whatever their logits hold.
    The value of a policy-gradient loss has no meaning: read `sampled_reverse_kl` instead.

    Args:
        logits_TV: raw student logits, any float type; cast to float32 inside.
        targets: teacher side of the same positions.
        loss: which loss, and its settings.

    Returns:
        `loss_T` in float32, and one float32 tensor of T values for each name in `DIAGNOSTICS`.

    Raises:
        DataError: the number of positions differs, or importance weights lack rollout log-probs.
    """
    targets.require_rows(len(logits_TV))
    live_T = targets.weight_T > 0
    logits_TV = logits_TV.float()
    if not bool(live_T.all()):  # a copy of the logits, so only where there is something to hide
        logits_TV = logits_TV.masked_fill(~live_T[:, None], 0.0)
    log_z_T = logits_TV.logsumexp(-1)
    token_T = logits_TV.gather(-1, targets.token_ids_T[:, None])[:, 0] - log_z_T
    if loss.kind == "policy_gradient":
        with torch.no_grad():
            sides = _categories(logits_TV, log_z_T, targets)
        loss_T = _policy_gradient(token_T, targets, loss)
    else:
        sides = _categories(logits_TV, log_z_T, targets)
        loss_T = _divergence(sides, loss)
    with torch.no_grad():
        values = _diagnostics(sides, targets, loss.teacher_logprob_floor)
        values["student_entropy"] = torch.special.entr(logits_TV.softmax(-1)).sum(-1)
        values["token_logprob"] = token_T.detach()
        floored_T = targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor)
        values["sampled_reverse_kl"] = token_T - floored_T
        values["rollout_kl"] = _rollout_kl(token_T, targets)
        values = {name: torch.where(live_T, values[name].float(), 0.0) for name in DIAGNOSTICS}
    return torch.where(live_T, loss_T, 0.0), values


def _categories(logits_TV: Tensor, log_z_T: Tensor, targets: Targets) -> _Categories:
    full_T = targets.valid_TS.sum(-1) == logits_TV.shape[-1]
    outside_TV = logits_TV.scatter(-1, targets.ids_TS, _NEG_INF)
    if targets.ids_TS.shape[-1] >= logits_TV.shape[-1]:
        # logsumexp of nothing but -inf has a NaN gradient: leave such rows something to sum
        outside_TV = outside_TV.masked_fill(full_T[:, None], 0.0)
    tail_T = outside_TV.logsumexp(-1)
    support_TS = logits_TV.gather(-1, targets.ids_TS)
    return _Categories(
        log_p_TC=torch.cat([targets.logprobs_TS, targets.tail_T[:, None]], dim=-1),
        log_q_TC=torch.cat([support_TS, tail_T[:, None]], dim=-1) - log_z_T[:, None],
        exists_TC=torch.cat([targets.valid_TS, ~full_T[:, None]], dim=-1),
    )


def _kl(log_a_TC: Tensor, log_b_TC: Tensor, present_TC: Tensor) -> Tensor:
    """Return KL(A‖B) over the present categories; absent ones give 0 and no NaN gradient."""
    log_a_TC = log_a_TC.masked_fill(~present_TC, 0.0)
    log_b_TC = log_b_TC.masked_fill(~present_TC, 0.0)
    return (log_a_TC.exp() * (log_a_TC - log_b_TC)).sum(-1)


def _forward_kl(sides: _Categories) -> Tensor:
    return _kl(sides.log_p_TC, sides.log_q_TC, sides.exists_TC & (sides.log_p_TC > _NEG_INF))


def _reverse_kl(sides: _Categories, floor: float) -> Tensor:
    return _kl(sides.log_q_TC, sides.log_p_TC.clamp(min=floor), sides.exists_TC)


def _divergence(sides: _Categories, loss: LossConfig) -> Tensor:
    """Return the divergence of each token; the ends of `beta` are the two KLs, not their limits.

    Source: generalised Jensen-Shannon divergence of GKD, arXiv 2306.13649.
    """
    if loss.kind == "forward_kl" or (loss.kind == "jsd" and loss.beta == 0.0):
        return _forward_kl(sides)
    if loss.kind == "reverse_kl" or loss.beta == 1.0:
        return _reverse_kl(sides, loss.teacher_logprob_floor)
    log_p_TC = sides.log_p_TC.clamp(min=loss.teacher_logprob_floor)
    log_m_TC = torch.logaddexp(
        sides.log_q_TC + math.log1p(-loss.beta), log_p_TC + math.log(loss.beta)
    )
    teacher_T = _kl(log_p_TC, log_m_TC, sides.exists_TC)
    student_T = _kl(sides.log_q_TC, log_m_TC, sides.exists_TC)
    return loss.beta * teacher_T + (1.0 - loss.beta) * student_T


def _policy_gradient(token_T: Tensor, targets: Targets, loss: LossConfig) -> Tensor:
    """Return -ρ·A, A = log p(y) - log q(y); the cap is a detached factor, so gradients stay."""
    now_T = token_T.detach()
    advantage_T = targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor) - now_T
    if loss.advantage_clip is not None:
        advantage_T = advantage_T.clamp(-loss.advantage_clip, loss.advantage_clip)
    if loss.importance == "none":
        return -advantage_T * token_T
    if targets.rollout_logprob_T is None:
        raise DataError("importance weights need the rollout's log-probabilities, there are none")
    log_ratio_T = (now_T - targets.rollout_logprob_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio_T = log_ratio_T.exp().clamp(max=loss.importance_cap)
    return -advantage_T * ratio_T * (token_T - now_T).exp()


def _rollout_kl(token_T: Tensor, targets: Targets) -> Tensor:
    """Return μ-samples' estimate r − 1 − log r of KL(μ‖q), r = q/μ, μ what the rollout drew from.

    Source: the low-variance estimator k3 of Schulman, "Approximating KL divergence", 2020.
    """
    if targets.rollout_logprob_T is None:
        return torch.zeros_like(token_T)
    log_ratio_T = (token_T - targets.rollout_logprob_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(log_ratio_T) - log_ratio_T


def _diagnostics(sides: _Categories, targets: Targets, floor: float) -> dict[str, Tensor]:
    student_TS = sides.log_q_TC[:, :-1].exp().masked_fill(~targets.valid_TS, 0.0)
    return {
        "forward_kl": _forward_kl(sides),
        "reverse_kl": _reverse_kl(sides, floor),
        "student_mass": student_TS.sum(-1),
        "teacher_mass": targets.logprobs_TS.exp().sum(-1),
        "floored": ((sides.log_p_TC < floor) & sides.exists_TC).any(-1),
        "tail_clamped": targets.tail_clamped_T,
    }
