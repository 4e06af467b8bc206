"""Buckets of the tail: a fixed partition of any vocabulary, by a hash of the id. Pure."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

WholeNumbers = TypeVar("WholeNumbers", NDArray[np.int64], "Tensor")


def bucket_of(ids: WholeNumbers, buckets: int) -> WholeNumbers:
    """Return the bucket of each id, int64; `ids` are an array or a tensor of int64."""
    return ((ids * 2654435761 & 0xFFFFFFFF) * buckets) >> 32
