"""How the rows of a batch stand in the ids that a decoder reads: padded, or end to end. Pure.

Shapes: B rows, T tokens of the longest, N tokens of all.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.learner.feed.device.travel import travelled
from pipeline.learner.sequences import Batch
from pipeline.models.own.packing import PackedRows, packed_rows
from pipeline.models.padding import padded, response_positions


def packed_inputs(batch: Batch, device: str) -> tuple[Tensor, PackedRows, Tensor]:
    """Return ids [1, N] of rows end to end, where they stand, and the states as `batch_inputs`."""
    rows = batch.id_rows()
    lengths = batch.prompt_tokens_B + batch.response_tokens_B
    ids_1N = travelled(torch.from_numpy(np.concatenate(rows).astype(np.int64))[None], device)
    row, column = response_positions(batch.prompt_tokens_B, batch.response_tokens_B)
    starts = torch.from_numpy(np.cumsum(lengths) - lengths)
    states_2T = torch.stack([torch.zeros_like(row), starts[row] + column])
    return ids_1N, packed_rows(lengths).to(device), travelled(states_2T, device)


def batch_inputs(batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return padded ids and mask [B, T], and the states [2, T] that predict response tokens."""
    ids_BT, mask_BT = padded(batch.id_rows(), "cpu", left=False)
    states_2T = response_positions(batch.prompt_tokens_B, batch.response_tokens_B)
    return travelled(ids_BT, device), travelled(mask_BT, device), travelled(states_2T, device)
