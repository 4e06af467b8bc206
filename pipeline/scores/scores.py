"""Teacher scores as arrays, rows joined; log-probabilities in nats. Shapes: T tokens, K top-k."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Floats, Ids
from schemas.errors import DataError
from schemas.tables import LOGPROB_ROUNDING


@dataclass(frozen=True)
class Scores:
    """Teacher scores of T response tokens, rows joined; log-probabilities in nats, float32.

    Attributes:
        topk_ids: int32 [T, K] in rank order; -1 where a position keeps fewer.
        topk_logprobs: [T, K]; -inf where a position keeps fewer.
        tail: [T] log mass outside the top-k, or [T, M] in M buckets; -inf where it is empty.
        token_logprob: [T] of the token that stands there.
        token_rank: int32 [T] of that token, from 1.
        entropy: [T] of the whole distribution, nats; None where the signal does not have it.
        candidate_ids: int32 [T, N] the student's own ids, or None.
        candidate_logprobs: [T, N] of these ids, or None.
        draw_ids: int32 [T, D] ids drawn from the whole distribution, ascending, or None.
    """

    topk_ids: Ids
    topk_logprobs: Floats
    tail: Floats
    token_logprob: Floats
    token_rank: Ids
    entropy: Floats | None = None
    candidate_ids: Ids | None = None
    candidate_logprobs: Floats | None = None
    draw_ids: Ids | None = None

    def take(self, tokens: NDArray[np.int64]) -> "Scores":
        """Return the scores at some positions, in their order."""
        there = {name: value for name, value in vars(self).items() if value is not None}
        return Scores(**{name: value[tokens] for name, value in there.items()})

    def check(self, *, vocab_size: int, where: str) -> None:
        """Make sure that the numbers are log-probabilities and ids of a vocabulary.

        Raises:
            DataError: a NaN, a positive log-probability or an impossible id.
        """
        highest = {}
        for name in ("topk_logprobs", "tail", "token_logprob", "entropy"):
            values = getattr(self, name)
            if values is not None:
                highest[name] = float(values.max(initial=-np.inf))  # NaN where there is one
        wrong = [name for name, value in highest.items() if np.isnan(value)]
        if wrong:
            raise DataError(f"{where}: the teacher's {wrong[0]} holds NaN; nothing was stored")
        if max(highest["topk_logprobs"], highest["token_logprob"]) > LOGPROB_ROUNDING:
            raise DataError(f"{where}: the teacher returned a positive log-probability")
        if self.topk_ids.max(initial=0) >= vocab_size or self._lacks_ids():
            raise DataError(f"{where}: the teacher returned an id outside [0, {vocab_size})")

    def _lacks_ids(self) -> bool:
        """Return whether an id is negative that is not of a position that keeps fewer."""
        if self.topk_ids.min(initial=0) >= 0:
            return False
        return bool(((self.topk_ids < 0) & ~np.isneginf(self.topk_logprobs)).any())
