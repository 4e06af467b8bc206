"""Which units of a round are needed next, and those that other threads read already."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from pipeline.learner.sequences import Batch, Rows
from pipeline.store import interrupts


class Coming:
    """Batches to come, and the units that are read for them."""

    def __init__(self, pool: ThreadPoolExecutor, uses: Sequence[Rows]) -> None:
        """Begin nothing yet.

        Args:
            pool: threads that read.
            uses: units of each batch.
        """
        self.pool = pool
        self.loading: dict[int, Future[Batch]] = {}
        """What each unit becomes that is being read."""
        self._ends = np.cumsum([0, *map(len, uses)])
        self._uses = np.concatenate([np.empty(0, dtype=np.int64), *uses])
        self._at = 0

    def next_units(self, most: int) -> list[int]:
        """Return the units that are needed next, in order, and go on to the next batch."""
        uses = self._uses[self._ends[min(self._at, len(self._ends) - 1)] :]
        self._at += 1
        size, first = most, np.empty(0, dtype=np.int64)
        while len(first) < most and size < 2 * max(len(uses), most):
            size *= 2
            first = np.unique(uses[:size], return_index=True)[1]
        return [int(unit) for unit in uses[np.sort(first)[:most]]]


def result_of(future: Future[Batch]) -> Batch:
    """Return what another thread reads, once it has; a safe point while it waits."""
    while not wait([future], timeout=interrupts.POLL_S).done:
        interrupts.check()
    return future.result()
