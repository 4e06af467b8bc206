"""The seam to whatever runs a model: sample responses, or score given ones. Token ids only.

Promises: index 0 of every per-token array is the first response token; a row's samples depend on
its seed, not on its neighbours. Shapes: T tokens of all rows joined, K top-k.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import LOGPROB_ROUNDING

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """Every parameter that decides a sample; nothing is taken from a model's own defaults."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    vocab_size: int | None = None
    """Only ids below it are drawn; None for every id that the model has logits for."""
    candidates: int = 0
    """Most likely ids that are recorded beside each drawn one."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response with the token that completes one of them."""

    def words(self) -> dict[str, Any]:
        """Return the parameters as records hold them: stop strings only where there are some.

        So the records of runs that began before there were any stay as they were.
        """
        words = asdict(self)
        return {name: v for name, v in words.items() if name != "stop_strings" or v}


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        ids: response ids, with the token that ends it: a stop token, or the one whose text
            completes a stop string.
        logprobs: log-probability of each id under the distribution that it was drawn from
            (temperature and truncation applied); under the model's own where temperature is 0.
        finish_reason: `stop`, or `length` where the limit cut it.
        candidate_ids: int32 [tokens, N] most likely ids of each position, in rank order.
        candidate_logprobs: [tokens, N], under the distribution that was drawn from.
    """

    ids: Ids
    logprobs: Floats
    finish_reason: str
    candidate_ids: Ids | None = None
    candidate_logprobs: Floats | None = None


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


class Engine(Protocol):
    """A loaded model."""

    name: str
    version: str
    vocab_size: int
    """Ids that the model has logits for."""
    context_length: int
    """Most tokens of prompt and response together."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return one response per prompt, each drawn with its own seed."""

    def score(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        *,
        signal: Signal,
        vocab_size: int,
        candidates: Sequence[Ids] | None = None,
    ) -> Scores:
        """Return scores of every response token; only ids below `vocab_size` enter the top-k.

        Args:
            prompts: prompt ids of each row.
            responses: response ids of each row.
            signal: what is kept.
            vocab_size: ids that the student has too.
            candidates: int32 [tokens, N] of each row, where the signal has candidates.
        """

    def shrink(self) -> bool:
        """Halve the tokens of a forward pass; return whether they could be fewer."""

    def close(self) -> None:
        """Give the model's memory back."""
