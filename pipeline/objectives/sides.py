"""Student and teacher at the same positions, on the support and its tail bucket. Pure.

Shapes: T tokens, S support = top-k and sampled token, G gathered = S and the sampled token again,
B tail buckets, C categories = S and B, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.outside import LOWEST
from pipeline.objectives.targets import Targets


class Categories(NamedTuple):
    """Both sides on support and tail bucket; `log_q_TC` is finite also where `exists_TC` is not."""

    log_p_TC: Tensor
    log_q_TC: Tensor
    exists_TC: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """All of a student's logits that objectives look at; gradients go through the first two."""

    logits_TG: Tensor
    """float32 logits of `Targets.gathered_TG`."""
    outside_TB: Tensor
    """float32 log-sum-exp of the other logits, in each bucket; anything finite where none is."""
    outside_mean_T: Tensor
    """float32 mean of the other logits under their softmax."""
    vocab_size: int


@dataclass(frozen=True, eq=False)
class Sides:
    """Student and teacher at T positions."""

    view: View
    targets: Targets

    @cached_property
    def categories(self) -> Categories:
        """Return both distributions, the ids outside the support together as one category."""
        targets, view = self.targets, self.view
        full_T = targets.valid_TS.sum(-1) == view.vocab_size
        exists_TC = torch.cat(
            [targets.valid_TS, ~full_T[:, None].expand_as(view.outside_TB)], dim=-1
        )
        support_TS = view.logits_TG[:, : targets.valid_TS.shape[1]]
        masses_TC = torch.cat([support_TS, view.outside_TB], dim=-1).clamp(min=LOWEST)
        log_z_T1 = masses_TC.masked_fill(~exists_TC, LOWEST).logsumexp(-1, keepdim=True)
        return Categories(
            log_p_TC=torch.cat([targets.logprobs_TS, targets.tail_T[:, None]], dim=-1),
            log_q_TC=masses_TC - log_z_T1,
            exists_TC=exists_TC,
        )

    @cached_property
    def log_z_T(self) -> Tensor:
        """Return the log-sum-exp of all logits."""
        first_T = self.view.logits_TG[:, 0].clamp(min=LOWEST)
        return first_T - self.categories.log_q_TC[:, 0]

    @cached_property
    def student_token_logprob_T(self) -> Tensor:
        """Return log q(y) of the sampled tokens."""
        return self.view.logits_TG[:, self.targets.valid_TS.shape[1]] - self.log_z_T

    @cached_property
    def student_entropy_T(self) -> Tensor:
        """Return the entropy of the student's whole distribution, in nats."""
        _, log_q_TC, exists_TC = self.categories
        q_TC = log_q_TC.exp().masked_fill(~exists_TC, 0.0)
        num_support = self.targets.valid_TS.shape[1]
        inside_T = (q_TC * log_q_TC)[:, :num_support].sum(-1)
        outside_T = self.view.outside_mean_T - self.log_z_T
        return -(inside_T + q_TC[:, num_support:].sum(-1) * outside_T)


def plain_view(logits_TV: Tensor, targets: Targets) -> View:
    """Return the view of float32 logits, through which autograd sees all of them."""
    outside_TV = logits_TV.scatter(-1, targets.ids_TS, LOWEST).clamp(min=LOWEST)
    log_sum_T = outside_TV.logsumexp(-1)
    with torch.no_grad():
        mean_T = ((outside_TV - log_sum_T[:, None]).exp() * outside_TV).sum(-1)
    return View(
        logits_TG=logits_TV.gather(-1, targets.gathered_TG),
        outside_TB=log_sum_T[:, None],
        outside_mean_T=mean_T,
        vocab_size=logits_TV.shape[-1],
    )
