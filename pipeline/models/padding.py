"""Batches of unequal rows: padding, and where the states that predict response tokens stand. Pure.

Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.ragged import offsets_within

PAD = 0
"""Id that fills batches; masked everywhere."""

Ids = NDArray[np.int32]


def length_batches(
    lengths: NDArray[Any], budget: int, *, kinds: NDArray[Any] | None = None
) -> list[NDArray[np.int64]]:
    """Return row indices in batches, longest first, each padded to at most `budget` values.

    A row that is longer than the budget makes a batch of its own.

    Args:
        lengths: tokens of each row.
        budget: most tokens of a batch, padding included.
        kinds: what the rows of a batch must have in common, a function of their length.
    """
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    if kinds is None:
        return _cut(order, lengths, budget)
    parts = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)
    return [batch for part in parts for batch in _cut(part, lengths, budget)]


def _cut(order: NDArray[np.int64], lengths: NDArray[Any], budget: int) -> list[NDArray[np.int64]]:
    """Return rows, which come longest first, in batches."""
    batches, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def padded(rows: Sequence[Ids], device: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return int64 ids and mask, both [B, T], padded on one side."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    column = np.arange(width)[None, :]
    mask = column >= width - lengths[:, None] if left else column < lengths[:, None]
    ids = np.full((len(rows), width), PAD, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def response_positions(prompt_tokens: NDArray[Any], response_tokens: NDArray[Any]) -> Tensor:
    """Return int64 [2, T]: row and column of the state that predicts each response token.

    Rows are prompt and response joined, padded on the right; T counts the response tokens of all.
    """
    row = np.repeat(np.arange(len(prompt_tokens)), response_tokens)
    column = prompt_tokens[row] - 1 + offsets_within(response_tokens)
    return torch.from_numpy(np.stack([row, column]))
