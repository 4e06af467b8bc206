"""Columns of tokens laid out by response: sums along each, whatever its neighbours are. Pure.

Shapes: T tokens, those of all responses end to end; B responses, L tokens of the longest.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Grid(NamedTuple):
    """Where each token stands."""

    row_T: Tensor
    """int64 number of its response, from 0."""
    place_T: Tensor
    """int64 place in it, from 0."""

    def lay(self, values_T: Tensor, fill: float = 0.0) -> Tensor:
        """Return values [B, L] in float64, `fill` where a response has no more tokens."""
        shape = [int(column.max()) + 1 if len(column) else 0 for column in self]
        grid_BL = torch.full(shape, fill, dtype=torch.float64, device=values_T.device)
        return grid_BL.index_put((self.row_T, self.place_T), values_T.double())

    def pick(self, grid_BL: Tensor) -> Tensor:
        """Return what each token has in a grid."""
        return grid_BL[self.row_T, self.place_T]


def grid_of(row_T: Tensor) -> Grid:
    """Return where tokens stand.

    Args:
        row_T: a number of each token's response; those of one stand together.
    """
    _, row_T, counts_B = torch.unique_consecutive(row_T, return_inverse=True, return_counts=True)
    starts_B = counts_B.cumsum(0) - counts_B
    return Grid(row_T, torch.arange(len(row_T), device=row_T.device) - starts_B[row_T])


def before(values_BL: Tensor) -> Tensor:
    """Return the sum over the earlier tokens of each response."""
    return F.pad(values_BL.cumsum(1)[:, :-1], (1, 0)) if values_BL.shape[1] else values_BL


def discounted(values_BL: Tensor, discount: float) -> Tensor:
    """Return Σ_(u ≥ t) discount^(u − t) · value_u of each token t."""
    reach, factor = 1, discount  # sums over so many tokens are there; doubled each time
    while reach < values_BL.shape[1] and factor > 0.0:
        later_BL = F.pad(values_BL[:, reach:], (0, reach))
        values_BL = values_BL + factor * later_BL
        reach, factor = 2 * reach, factor * factor
    return values_BL


def top_share(values_BL: Tensor, trained_BL: Tensor, share: float) -> Tensor:
    """Return which trained tokens are of the largest of their response, ties by place.

    At least a share of them, and one where there is any.
    """
    values_BL = values_BL.masked_fill(~trained_BL, -torch.inf)
    order_BL = values_BL.argsort(dim=1, descending=True, stable=True)
    ranks_BL = torch.empty_like(order_BL)
    steps_BL = torch.arange(order_BL.shape[1], device=order_BL.device).expand_as(order_BL)
    ranks_BL.scatter_(1, order_BL, steps_BL)
    # 0.7 · 10 is a little more than 7
    kept_B1 = torch.ceil(share * trained_BL.sum(1, keepdim=True).double() - 1e-9).clamp(min=1.0)
    return trained_BL & (ranks_BL < kept_B1)
