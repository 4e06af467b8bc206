"""Triton kernels of `outside`: one pass over a chunk's logits to look, one for the gradient.

`outside.plain_outside` is what they are held against. Shapes: N tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.objectives.outside import LOWEST

_BLOCK = 4096
"""Logits of a row that a program reads at once."""


@triton.jit
def _look(  # type: ignore[no-untyped-def] # Triton's own language
    logits, maxima, sums, moments, stride, vocab, LOWEST: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * stride
    high = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, vocab, BLOCK):
        place = offset + tl.arange(0, BLOCK)
        z = tl.load(start + place, mask=place < vocab, other=LOWEST)
        z = tl.where(z < LOWEST, LOWEST, z)  # -inf, and no NaN is hidden
        new = tl.maximum(high, z, propagate_nan=tl.PropagateNan.ALL)
        shrink, term = tl.exp(high - new), tl.exp(z - new)
        # the moment is of z - high: sum of exp(z - high) (z - high)
        moment = shrink * (moment + (high - new) * total) + term * (z - new)
        total = total * shrink + term
        high = new
    top = tl.max(high, 0)
    shrink = tl.exp(high - top)
    moment = tl.sum(shrink * (moment + (high - top) * total), 0)
    tl.store(maxima + row, top)
    tl.store(sums + row, tl.sum(total * shrink, 0))
    tl.store(moments + row, moment)


@triton.jit
def _spread(  # type: ignore[no-untyped-def] # Triton's own language
    logits, out, maxima, factors, stride, vocab, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = row.to(tl.int64) * stride + place
    z = tl.load(logits + offset, mask=place < vocab, other=0.0)
    value = tl.exp(z - tl.load(maxima + row)) * tl.load(factors + row)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=place < vocab)


@dataclass(frozen=True, eq=False)
class _FusedOutside:
    logits_NV: Tensor
    max_N: Tensor
    sum_N: Tensor
    log_sum_NB: Tensor
    mean_N: Tensor

    def gradient(self, of_log_sum_NB: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient of the logits, in their own buffer where they are of `dtype`."""
        z_NV = self.logits_NV
        num_rows, vocab = z_NV.shape
        out_NV = z_NV if dtype == z_NV.dtype else torch.empty_like(z_NV, dtype=dtype)
        factors_N = (of_log_sum_NB[:, 0] / self.sum_N).contiguous()
        grid: Any = (num_rows, triton.cdiv(vocab, _BLOCK))
        _spread[grid](z_NV, out_NV, self.max_N, factors_N, vocab, vocab, BLOCK=_BLOCK)
        return out_NV


def fused_outside(logits_NV: Tensor, ids_NS: Tensor) -> _FusedOutside:
    """Return what `plain_outside` returns for one bucket; the logits are overwritten."""
    logits_NV = logits_NV.contiguous().scatter_(1, ids_NS, LOWEST)
    num_rows, vocab = logits_NV.shape
    max_N, sum_N, moment_N = logits_NV.new_empty(3, num_rows).unbind()
    grid: Any = (num_rows,)
    _look[grid](
        *(logits_NV, max_N, sum_N, moment_N, vocab, vocab), LOWEST=LOWEST, BLOCK=_BLOCK, num_warps=8
    )
    return _FusedOutside(
        logits_NV=logits_NV,
        max_N=max_N,
        sum_N=sum_N,
        log_sum_NB=(sum_N.log() + max_N).clamp_(min=LOWEST)[:, None],
        mean_N=moment_N / sum_N + max_N,
    )
