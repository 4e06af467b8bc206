"""Student and teacher at the same positions, on support, tail buckets and sample. Pure.

Shapes: T tokens, S support, N ids of a sample, G gathered = S, the sampled token and N, B tail
buckets, C categories = S and B, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.outside import LOWEST
from pipeline.objectives.targets import Targets
from pipeline.scores.buckets import bucket_of


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
    tempered: "Sides | None" = None
    """Both at the temperature of the objective; None where that is 1."""

    @property
    def num_support(self) -> int:
        """Return S."""
        return self.targets.valid_TS.shape[1]

    @cached_property
    def _exists_TC(self) -> Tensor:
        valid_TS = self.targets.valid_TS
        rest_T1 = valid_TS.sum(-1, keepdim=True) < self.view.vocab_size
        return torch.cat([valid_TS, rest_T1.expand_as(self.view.outside_TB)], dim=-1)

    @cached_property
    def _masses_TC(self) -> Tensor:
        support_TS = self.view.logits_TG[:, : self.num_support]
        return torch.cat([support_TS, self.view.outside_TB], dim=-1).clamp(min=LOWEST)

    @cached_property
    def log_z_T(self) -> Tensor:
        """Return the log-sum-exp of all logits."""
        return self._masses_TC.masked_fill(~self._exists_TC, LOWEST).logsumexp(-1)

    @cached_property
    def categories(self) -> Categories:
        """Return both distributions, the ids outside the support together in their buckets."""
        targets = self.targets
        return Categories(
            log_p_TC=torch.cat([targets.logprobs_TS, targets.tail_TB], dim=-1),
            log_q_TC=self._masses_TC - self.log_z_T[:, None],
            exists_TC=self._exists_TC,
        )

    @cached_property
    def student_token_logprob_T(self) -> Tensor:
        """Return log q(y) of the sampled tokens."""
        return self.view.logits_TG[:, self.num_support] - self.log_z_T

    @cached_property
    def student_sample_logprobs_TN(self) -> Tensor:
        """Return log q of the sample's ids, finite."""
        logits_TN = self.view.logits_TG[:, self.num_support + 1 :].clamp(min=LOWEST)
        return logits_TN - self.log_z_T[:, None]

    @cached_property
    def student_entropy_T(self) -> Tensor:
        """Return the entropy of the student's whole distribution, in nats."""
        _, log_q_TC, exists_TC = self.categories
        q_TC = log_q_TC.exp().masked_fill(~exists_TC, 0.0)
        inside_T = (q_TC * log_q_TC)[:, : self.num_support].sum(-1)
        outside_T = self.view.outside_mean_T - self.log_z_T
        return -(inside_T + q_TC[:, self.num_support :].sum(-1) * outside_T)


def plain_sides(logits_TV: Tensor, targets: Targets) -> Sides:
    """Return both sides of float32 logits, through which autograd sees all of them."""
    plain = Sides(plain_view(logits_TV, targets), targets)
    if targets.tempered is None:
        return plain
    cold = targets.at(targets.tempered)
    cold_TV = logits_TV / targets.tempered.temperature
    return replace(plain, tempered=Sides(plain_view(cold_TV, cold), cold))


def plain_view(logits_TV: Tensor, targets: Targets) -> View:
    """Return the view of float32 logits, through which autograd sees all of them."""
    num_ids, num_buckets = logits_TV.shape[-1], targets.tail_TB.shape[1]
    outside_TV = logits_TV.scatter(-1, targets.ids_TS, LOWEST).clamp(min=LOWEST)
    bucket_V = bucket_of(torch.arange(num_ids, device=logits_TV.device), num_buckets)
    sums = [
        outside_TV.masked_fill(bucket_V != bucket, LOWEST).logsumexp(-1)
        for bucket in range(num_buckets)
    ]
    with torch.no_grad():
        mean_T = (outside_TV.softmax(-1) * outside_TV).sum(-1)
    return View(
        logits_TG=logits_TV.gather(-1, targets.gathered_TG),
        outside_TB=torch.stack(sums, dim=-1),
        outside_mean_T=mean_T,
        vocab_size=num_ids,
    )
