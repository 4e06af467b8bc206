"""Teacher scores as arrays, rows joined; log-probabilities in nats. Shapes: T tokens, K top-k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Floats, Ids
from schemas.errors import DataError
from schemas.scoresignal import SCORE_COLUMNS
from schemas.tables import LOGPROB_ROUNDING


@dataclass(frozen=True)
class Scores:
    """Teacher scores of T response tokens, rows joined; log-probabilities in nats, float32.

    Attributes:
        topk_ids: int32 [T, K] in rank order, K maybe 0; -1 where a position keeps fewer.
        topk_logprobs: [T, K]; -inf where a position keeps fewer.
        tail_logprobs: [T] log mass outside the top-k, or [T, M] in M buckets; -inf where empty.
        token_logprob: [T] of the token that stands there.
        token_rank: int32 [T] of that token, from 1.
        entropy: [T] of the whole distribution, nats; None where the signal does not have it.
        candidate_ids: int32 [T, N] the student's own ids, -1 where a position has fewer; or None.
        candidate_logprobs: [T, N] of these ids, -inf where there are fewer; or None.
        draw_ids: int32 [T, D] ids drawn from the whole distribution, ascending, or None.
        sample_ids: int32 [T, N] threshold sample of what is outside the top-k, the likeliest first;
            -1 where fewer ids have mass; or None.
        sample_logprobs: [T, N] of these ids, -inf where there are fewer; or None.
        sample_threshold: [T] log of the sample's threshold, -inf where its ids have all of the
            mass; or None.
        further: arrays of score columns that have no attribute here, [T] or [T, N], by name.
    """

    topk_ids: Ids
    topk_logprobs: Floats
    tail_logprobs: Floats
    token_logprob: Floats
    token_rank: Ids
    entropy: Floats | None = None
    candidate_ids: Ids | None = None
    candidate_logprobs: Floats | None = None
    draw_ids: Ids | None = None
    sample_ids: Ids | None = None
    sample_logprobs: Floats | None = None
    sample_threshold: Floats | None = None

    further: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "Scores":
        """Return the scores of arrays by name, as `arrays` gives them."""
        further = {name: v for name, v in arrays.items() if name not in cls.__dataclass_fields__}
        own: dict[str, Any] = {name: v for name, v in arrays.items() if name not in further}
        return cls(**own, further=further)

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """Return the scores of some parts, at least one, that have the same arrays."""
        every = [part.arrays() for part in parts]
        return cls.of({name: np.concatenate([one[name] for one in every]) for name in every[0]})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that there are, by name."""
        own = {name: v for name, v in vars(self).items() if name != "further" and v is not None}
        return {**own, **self.further}

    def take(self, tokens: NDArray[np.int64]) -> "Scores":
        """Return the scores at some positions, in their order."""
        return Scores.of({name: values[tokens] for name, values in self.arrays().items()})

    def check(self, *, vocab_size: int, where: str) -> None:
        """Make sure that the numbers are log-probabilities and ids of a vocabulary.

        Raises:
            DataError: a NaN, a positive log-probability or an impossible id.
        """
        arrays = self.arrays()
        numbers = [c for c in SCORE_COLUMNS if c.name in arrays and not c.kind.is_whole]
        highest = {c.name: float(arrays[c.name].max(initial=-np.inf)) for c in numbers}
        wrong = [name for name, value in highest.items() if np.isnan(value)]
        if wrong:
            raise DataError(f"{where}: the teacher's {wrong[0]} holds NaN; nothing was stored")
        if any(highest[c.name] > LOGPROB_ROUNDING for c in numbers if c.kind.is_logprob):
            raise DataError(f"{where}: the teacher returned a positive log-probability")
        if self.topk_ids.max(initial=0) >= vocab_size or self._lacks_ids():
            raise DataError(f"{where}: the teacher returned an id outside [0, {vocab_size})")

    def _lacks_ids(self) -> bool:
        """Return whether an id is negative that is not of a position that keeps fewer."""
        if self.topk_ids.min(initial=0) >= 0:
            return False
        return bool(((self.topk_ids < 0) & ~np.isneginf(self.topk_logprobs)).any())
