"""Distillation losses of flat token positions against a cached teacher support, in nats.

Pure: no I/O, no random numbers, no state. Shapes: T tokens (all sequences of a batch, end to end),
S support = top-k and sampled token, C categories = S and one tail bucket, V vocabulary.
"""

import torch
from torch import Tensor

from pipeline.objectives.diagnostics import DIAGNOSTICS, PerToken
from pipeline.objectives.divergences import DIVERGENCES
from pipeline.objectives.estimators import estimated, over_categories
from pipeline.objectives.own.objective import OwnObjective
from pipeline.objectives.rewardterm import gated, reward_term
from pipeline.objectives.sides import Sides, plain_sides
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens.policy import policy_gradient
from pipeline.objectives.tokens.seen import Seen, log_ratio, no_look, planned
from schemas.config.loss import POLICY, LossConfig


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


@torch.no_grad()
def look(sides: Sides, loss: LossConfig) -> Seen:
    """Return what the student says of some positions before their losses are computed."""
    if loss.kind == POLICY:
        size_T = log_ratio(sides.student_token_logprob_T, sides.targets, loss)
    elif loss.kind in DIVERGENCES:
        size_T = over_categories(sides, DIVERGENCES[loss.kind], loss)
    else:
        size_T = _of_kind(sides, loss)
    return Seen(sides.student_token_logprob_T, sides.student_entropy_T, size_T.clamp(min=0.0))


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
    """Return the distillation loss of each token, with its weight and its response's."""
    sides = sides.tempered or sides
    distilled_T, plan = gated(_of_kind(sides, loss), sides), sides.targets.plan
    return distilled_T if plan is None or plan.weight_T is None else plan.weight_T * distilled_T


def _of_kind(sides: Sides, loss: LossConfig) -> Tensor:
    if isinstance(loss, OwnObjective):
        return loss.per_token(sides)
    return LOSSES[loss.kind](sides, loss)


def _divergence(sides: Sides, loss: LossConfig) -> Tensor:
    return estimated(sides, DIVERGENCES[loss.kind], loss)


LOSSES: dict[str, PerToken] = {
    **dict.fromkeys(DIVERGENCES, _divergence),
    POLICY: policy_gradient,
    "sft": lambda sides, _: -sides.student_token_logprob_T,
}
"""The loss of each token in nats, by `loss.kind`."""
