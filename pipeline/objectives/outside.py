"""The ids outside a support, after one look at a chunk's logits: their mass, mean and gradient.

Promises what `logsumexp` and softmax over these ids give, in few passes over the logits, in their
own buffer. Must not know a loss. Shapes: N tokens of a chunk, S support, B tail buckets, V ids.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LOWEST = -1e30
"""What stands for minus infinity: finite, so that nothing times it is NaN."""

_TINY = 1e-37
"""Smallest sum of a bucket, as a share of its row's largest term: float32 ends there."""


_BLOCK = 1 << 18
"""Logits that a CPU works on at once: they stay in its cache from one pass to the next."""


class Outside(Protocol):
    """Ids outside the support of N positions."""

    @property
    def log_sum_NB(self) -> Tensor:
        """Log of the sum of exp(logit) in each bucket, float32; `LOWEST` where there is none."""

    @property
    def mean_N(self) -> Tensor:
        """Mean logit under the softmax over all these ids, float32."""

    def gradient(self, of_log_sum_NB: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient [N, V] of the logits from that of `log_sum_NB`, 0 at the support.

        It may take the place of the logits: call once.
        """


@dataclass(frozen=True, eq=False)
class PlainOutside:
    """As made by torch's own operations, on any device."""

    exp_NV: Tensor
    """exp(logit − largest outside), 0 at the support."""
    sum_NB: Tensor
    log_sum_NB: Tensor
    mean_N: Tensor
    buckets_V: Tensor | None

    def gradient(self, of_log_sum_NB: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient of the logits, in the buffer of the exponentials."""
        each_NB = of_log_sum_NB / self.sum_NB
        if self.buckets_V is not None:
            each_NB = each_NB.index_select(1, self.buckets_V)
        return self.exp_NV.mul_(each_NB).to(dtype)


def plain_outside(
    logits_NV: Tensor, ids_NS: Tensor, *, buckets_V: Tensor | None = None, num_buckets: int = 1
) -> PlainOutside:
    """Return the ids outside the support; the logits are overwritten.

    Args:
        logits_NV: float32 logits.
        ids_NS: int64 ids of the support, one of them again where a row has fewer.
        buckets_V: int64 bucket of each id; None for a single bucket.
        num_buckets: B.
    """
    logits_NV.scatter_(1, ids_NS, LOWEST)
    rows = max(1, _BLOCK // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else None
    blocks = torch.split(logits_NV, rows or max(1, len(logits_NV)))
    spare_NV = torch.empty_like(blocks[0])
    parts = [_exponentials(block, spare_NV[: len(block)]) for block in blocks]
    max_N, moment_N = (torch.cat(column) for column in zip(*parts, strict=True))
    exp_NV = logits_NV  # they are now
    if buckets_V is None:
        sum_NB = exp_NV.sum(1, keepdim=True)
    else:
        sum_NB = exp_NV.new_zeros(len(exp_NV), num_buckets).index_add_(1, buckets_V, exp_NV)
    sum_NB.clamp_(min=_TINY)
    return PlainOutside(
        exp_NV=exp_NV,
        sum_NB=sum_NB,
        log_sum_NB=(sum_NB.log() + max_N[:, None]).clamp_(min=LOWEST),
        mean_N=moment_N / sum_NB.sum(1) + max_N,
        buckets_V=buckets_V,
    )


def _exponentials(logits_RV: Tensor, spare_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Turn rows of logits into exp(logit − largest); return the largest, and Σ exp(d)·d."""
    max_R1 = logits_RV.amax(1, keepdim=True).clamp_(min=LOWEST)
    logits_RV.sub_(max_R1)
    exp_RV = torch.exp(logits_RV, out=spare_RV)
    moment_R = torch.linalg.vecdot(exp_RV, logits_RV)
    if bool(moment_R.isnan().any()):  # logits of -inf: 0 · -inf
        moment_R = torch.linalg.vecdot(exp_RV, logits_RV.clamp_(min=LOWEST))
    logits_RV.copy_(exp_RV)
    return max_R1[:, 0], moment_R
