"""Student and teacher at the same positions, on the support and its tail bucket. Pure.

Shapes: T tokens, S support = top-k and sampled token, C categories = S and one tail bucket,
V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.targets import Targets


class Categories(NamedTuple):
    """Both sides on support and tail bucket; `log_q_TC` is finite also where `exists_TC` is not."""

    log_p_TC: Tensor
    log_q_TC: Tensor
    exists_TC: Tensor


@dataclass(frozen=True, eq=False)
class Sides:
    """Student and teacher at T positions.

    What a loss does not ask for is made when a diagnostic does, and keeps nothing for a gradient.
    """

    logits_TV: Tensor
    log_z_T: Tensor
    """Log-sum-exp of the logits."""
    targets: Targets

    @cached_property
    def student_token_logprob_T(self) -> Tensor:
        """Return log q(y) of the sampled tokens."""
        token_T1 = self.targets.token_ids_T[:, None]
        return self.logits_TV.gather(-1, token_T1)[:, 0] - self.log_z_T

    @cached_property
    def categories(self) -> Categories:
        """Return both distributions, the ids outside the support together as one category."""
        targets, logits_TV = self.targets, self.logits_TV
        full_T = targets.valid_TS.sum(-1) == logits_TV.shape[-1]
        outside_TV = logits_TV.scatter(-1, targets.ids_TS, -math.inf)
        if targets.ids_TS.shape[-1] >= logits_TV.shape[-1]:
            # logsumexp of nothing but -inf has a NaN gradient: leave such rows something to sum
            outside_TV = outside_TV.masked_fill(full_T[:, None], 0.0)
        tail_T = outside_TV.logsumexp(-1)
        support_TS = logits_TV.gather(-1, targets.ids_TS)
        return Categories(
            log_p_TC=torch.cat([targets.logprobs_TS, targets.tail_T[:, None]], dim=-1),
            log_q_TC=torch.cat([support_TS, tail_T[:, None]], dim=-1) - self.log_z_T[:, None],
            exists_TC=torch.cat([targets.valid_TS, ~full_T[:, None]], dim=-1),
        )
