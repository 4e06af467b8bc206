"""Matrix products of 16-bit tensors whose results are summed and kept in float32. Pure.

A product that is rounded to 16 bits turns the gradient of a loss near its end: the difference of
two distributions is smaller than what rounding adds. Shapes: N tokens, H hidden, V vocabulary.
"""

import torch
from torch import Tensor


def takes_low(hidden_TH: Tensor) -> bool:
    """Return whether a device multiplies 16-bit tensors into a float32 one."""
    return hidden_TH.is_cuda and hidden_TH.dtype != torch.float32


def product(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *, out_NV: Tensor | None = None
) -> Tensor:
    """Return hidden states times a head's matrix, plus its bias, in float32.

    Args:
        hidden_NH: of any type.
        weight_VH: the matrix: of the same type where `takes_low`, else float32.
        bias_V: the bias, or None.
        out_NV: what the product is written to.
    """
    if takes_low(hidden_NH):
        made_NV = torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32)
        return made_NV if bias_V is None else made_NV.add_(bias_V)
    hidden_NH = hidden_NH.float()
    if bias_V is None:
        return torch.mm(hidden_NH, weight_VH.t(), out=out_NV)
    return torch.addmm(bias_V, hidden_NH, weight_VH.t(), out=out_NV)


class Sum:
    """A sum of products, in float32 unless there is one alone; None yet where there is none."""

    def __init__(self, like: Tensor) -> None:
        """Begin with nothing.

        Args:
            like: what the sum is a gradient of: its shape, type and device are the sum's.
        """
        self._like = like
        self._sum: Tensor | None = None

    def add(self, left: Tensor, right: Tensor, *, alone: bool = False) -> None:
        """Add the product of two matrices of one type; `alone` if no other is added."""
        if self._sum is None:
            self._sum = _first(left, right, self._like.dtype if alone else torch.float32)
        elif left.dtype == torch.float32:
            self._sum.addmm_(left, right)  # no second matrix of this size
        elif left.is_cuda:
            torch.addmm(self._sum, left, right, out_dtype=torch.float32, out=self._sum)
        else:
            self._sum += left @ right

    def total(self) -> Tensor:
        """Return the sum, zeros where nothing was added."""
        return torch.zeros_like(self._like) if self._sum is None else self._sum


def _first(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    if left.is_cuda and dtype != left.dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
