"""What is told of each token beside its loss: divergences, masses, weights, shares. Pure.

Shapes: T tokens, S support, C categories.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.objectives.divergences import DIVERGENCES
from pipeline.objectives.estimators import estimated, over_categories
from pipeline.objectives.rewardterm import BESIDE
from pipeline.objectives.sides import Sides
from pipeline.objectives.tokens import policy, seen
from pipeline.objectives.tokens.policy import MAX_LOG_RATIO
from schemas.config.loss import SAMPLES, DivergenceKind, LossConfig

PerToken = Callable[[Sides, LossConfig], Tensor]
"""From both sides of T positions to a value of each."""


def _told(kind: DivergenceKind) -> PerToken:
    """Return what tells of a divergence whichever is trained; by a sample only where it suits."""

    def divergence(sides: Sides, loss: LossConfig) -> Tensor:
        sample = sides.targets.sample
        suits = sample is not None and sample.of in SAMPLES[kind]
        return (estimated if suits else over_categories)(sides, DIVERGENCES[kind], loss)

    return divergence


def _sampled_reverse_kl(sides: Sides, loss: LossConfig) -> Tensor:
    teacher_T = sides.targets.token_logprob_T.clamp(min=loss.teacher_logprob_floor)
    return sides.student_token_logprob_T - teacher_T


def _student_mass(sides: Sides, loss: LossConfig) -> Tensor:
    student_TS = sides.categories.log_q_TC[:, : sides.num_support].exp()
    return student_TS.masked_fill(~sides.targets.valid_TS, 0.0).sum(-1)


def _floored(sides: Sides, loss: LossConfig) -> Tensor:
    log_p_TC, _, exists_TC = sides.categories
    return ((log_p_TC < loss.teacher_logprob_floor) & exists_TC).any(-1)


def _rollout_kl(sides: Sides, loss: LossConfig) -> Tensor:
    """Return μ-samples' estimate r − 1 − log r of KL(μ‖q), r = q/μ, μ what the rollout drew from.

    Source: the low-variance estimator k3 of Schulman, "Approximating KL divergence", 2020.
    """
    token_T, rollout_T = sides.student_token_logprob_T, sides.targets.rollout_logprob_T
    if rollout_T is None:
        return torch.zeros_like(token_T)
    log_ratio_T = (token_T - rollout_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(log_ratio_T) - log_ratio_T


DIAGNOSTICS: dict[str, PerToken] = {
    "forward_kl": _told("forward_kl"),
    "reverse_kl": _told("reverse_kl"),
    "sampled_reverse_kl": _sampled_reverse_kl,
    "student_mass": _student_mass,
    "teacher_mass": lambda sides, _: sides.targets.logprobs_TS.exp().sum(-1),
    "student_entropy": lambda sides, _: sides.student_entropy_T,
    "student_token_logprob": lambda sides, _: sides.student_token_logprob_T,
    "rollout_kl": _rollout_kl,
    "floored": _floored,
    "tail_clamped": lambda sides, _: sides.targets.tail_clamped_T,
    "importance_cut": policy.weight_cut_share,
    "policy_clipped": policy.clipped_share,
    "token_kept": seen.kept_share,
    "token_weight": seen.token_weight,
    "divergence_clipped": seen.clipped_share,
    **BESIDE,
}
"""What is told of each token beside its loss, by the name of its metric."""
