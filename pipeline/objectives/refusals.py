"""What the teacher's side of a batch must be: distinct ids, log-probabilities of a whole. Pure.

Promises: positions that are wrong are counted, and the first is named. One pass over each column
is enough where all is well. Shapes: T tokens, K top-k.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.objectives.supports import Stored
from schemas.errors import DataError
from schemas.tables import LOGPROB_ROUNDING


def require_shapes(ids_TK: Tensor, logprobs_TK: Tensor, columns: list[Tensor]) -> None:
    """Make sure that all columns are of the same positions.

    Raises:
        DataError: shapes disagree.
    """
    shapes = [tuple(column.shape) for column in columns]
    lengths = {shape[:1] for shape in shapes}
    if ids_TK.dim() != 2 or ids_TK.shape != logprobs_TK.shape or lengths != {ids_TK.shape[:1]}:
        raise DataError(
            f"shapes disagree: top-k ids {tuple(ids_TK.shape)}, top-k log-probabilities "
            f"{tuple(logprobs_TK.shape)}, per-token columns {shapes}"
        )


def refuse(bad_T: Tensor, found: str) -> None:
    """Make sure that no position is bad.

    Raises:
        DataError: some are; `found` says what they have.
    """
    if bool(bad_T.any()):
        count, first = int(bad_T.sum()), int(bad_T.nonzero()[0, 0])
        raise DataError(f"{found} at {count} of {len(bad_T)} positions, the first is {first}")


def check_ids(stored: Stored, vocab_size: int) -> None:
    """Make sure that ids are of the vocabulary, and those of a row distinct.

    Raises:
        DataError: they are not.
    """
    ids_TK, token_T = stored.ids_TK, stored.token_ids_T
    if not _within(ids_TK, vocab_size):
        padding_TK = (ids_TK < 0) & (stored.logprobs_TK == -math.inf)
        bad_TK = ~padding_TK & ((ids_TK < 0) | (ids_TK >= vocab_size))
        refuse(bad_TK.any(-1), f"teacher top-k id outside the vocabulary of {vocab_size}")
    if not _within(token_T, vocab_size):
        bad_T = (token_T < 0) | (token_T >= vocab_size)
        refuse(bad_T, f"sampled id outside the vocabulary of {vocab_size}")
    sorted_TK = _sorted_rows(ids_TK)
    same_TK = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)
    refuse(same_TK.any(-1), "duplicate teacher top-k ids")


def _within(ids: Tensor, vocab_size: int) -> bool:
    """Return whether all ids are of the vocabulary: one pass, which is enough for most batches."""
    if not ids.numel():
        return True
    least, most = ids.aminmax()
    return bool((least >= 0) & (most < vocab_size))


def _sorted_rows(ids_TK: Tensor) -> Tensor:
    """Return the ids of each row in order; on a CPU numpy's sort is twenty times torch's."""
    if ids_TK.is_cuda:
        return ids_TK.sort(-1).values
    return torch.from_numpy(np.sort(ids_TK.numpy(), axis=-1))


def check_logprobs(stored: Stored) -> None:
    """Make sure that log-probabilities are such.

    Raises:
        DataError: one is NaN or positive.
    """
    for owner, logprobs in [
        ("teacher top-k", stored.logprobs_TK),
        ("teacher tail", stored.tail_T),
        ("teacher sampled-token", stored.token_logprob_T),
        ("rollout", stored.rollout_logprob_T),
    ]:
        if logprobs is None or not logprobs.numel() or bool(logprobs.amax() <= LOGPROB_ROUNDING):
            continue
        bad = ~(logprobs <= LOGPROB_ROUNDING)
        bad_T = bad if bad.dim() == 1 else bad.any(-1)
        refuse(bad_T, f"{owner} log-probability is NaN or positive")
