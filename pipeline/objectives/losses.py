"""Distillation losses of flat token positions against a cached teacher support, in nats.

Pure: no I/O, no random numbers, no state. Shapes: T tokens (all sequences of a batch, end to end),
S support = top-k and sampled token, C categories = S and one tail bucket, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.objectives.divergences import DIVERGENCES
from pipeline.objectives.estimators import estimated, over_categories
from pipeline.objectives.own.objective import OwnObjective
from pipeline.objectives.rewardterm import BESIDE, gated, reward_term
from pipeline.objectives.sides import Sides, plain_sides
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens import policy, seen
from pipeline.objectives.tokens.policy import MAX_LOG_RATIO, policy_gradient
from pipeline.objectives.tokens.seen import look, no_look, planned
from schemas.config.loss import POLICY, SAMPLES, DivergenceKind, LossConfig

_PerToken = Callable[[Sides, LossConfig], Tensor]


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
    sides = plain_sides(logits_TV, targets)
    if loss.is_planned:
        seen_T = look(sides, loss) if loss.of_responses else no_look(targets)
        sides = plain_sides(logits_TV, planned(targets, seen_T, loss))
    loss_T, values = losses_of(sides, loss)
    values = {name: torch.where(live_T, value_T, 0.0) for name, value_T in values.items()}
    return torch.where(live_T, loss_T, 0.0), values


def losses_of(sides: Sides, loss: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and diagnostics as `token_losses` does, where every position is trained."""
    loss_T = _weighted(sides, loss)
    with torch.no_grad():
        values = {
            name: diagnostic(sides, loss).float().detach()
            for name, diagnostic in DIAGNOSTICS.items()
        }
    return loss_T, values


def _weighted(sides: Sides, loss: LossConfig) -> Tensor:
    """Return distillation and rewards, each with its weight; what has none is not computed."""
    if not loss.rl_weight:
        distilled_T = _distilled(sides, loss)
        return distilled_T if loss.distill_weight == 1.0 else loss.distill_weight * distilled_T
    rewarded_T = loss.rl_weight * reward_term(sides, loss)
    if not loss.distill_weight:
        return rewarded_T
    return loss.distill_weight * _distilled(sides, loss) + rewarded_T


def _distilled(sides: Sides, loss: LossConfig) -> Tensor:
    """Return the distillation loss of each token, with its own weight and that of its gate."""
    sides = sides.tempered or sides
    own = loss.per_token(sides) if isinstance(loss, OwnObjective) else None
    found_T = LOSSES[loss.kind](sides, loss) if own is None else own
    plan = sides.targets.plan
    weighted_T = found_T if plan is None or plan.weight_T is None else plan.weight_T * found_T
    return gated(weighted_T, sides)


def _divergence(sides: Sides, loss: LossConfig) -> Tensor:
    return estimated(sides, DIVERGENCES[loss.kind], loss)


LOSSES: dict[str, _PerToken] = {
    **dict.fromkeys(DIVERGENCES, _divergence),
    POLICY: policy_gradient,
    "sft": lambda sides, _: -sides.student_token_logprob_T,
}
"""The loss of each token in nats, by `loss.kind`."""


def _told(kind: DivergenceKind) -> _PerToken:
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


DIAGNOSTICS: dict[str, _PerToken] = {
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
