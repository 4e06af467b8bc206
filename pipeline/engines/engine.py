"""The seam to whatever runs a model: sample responses, or score given ones. Token ids only.

Promises: index 0 of every per-token array is the first response token; a row's samples depend on
its seed, not on its neighbours. Shapes: T tokens of all rows joined, K top-k.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pipeline.scores.scores import Scores
from schemas.columns import Floats, Ids
from schemas.errors import ConfigError
from schemas.scoresignal import Signal


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
    sample: int = 0
    """Ids of a threshold sample of the distribution that is drawn from, recorded at each token."""
    sample_mean: int = 0
    """How many of them a unit's tokens keep on average, each as it needs; 0 for all."""

    def words(self) -> dict[str, Any]:
        """Return the parameters as records hold them: those that came later only where they are on.

        So the records of runs that began before there were any stay as they were.
        """
        words = asdict(self)
        later = ("stop_strings", "sample", "sample_mean")
        return {name: v for name, v in words.items() if name not in later or v}

    def check_vocabulary(self, size: int) -> None:
        """Make sure that a model has as many ids as are recorded at each token.

        Args:
            size: ids that the model has logits for.

        Raises:
            ConfigError: it has fewer.
        """
        known = self.vocab_size or size
        for name in ("candidates", "sample"):
            if getattr(self, name) > known:
                raise ConfigError(
                    f"rollout.{name} = {getattr(self, name)}, but the vocabulary has {known} ids: "
                    "lower it"
                )


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
        sample_ids: int32 [tokens, S] threshold sample of that distribution, the likeliest first;
            where too few ids have mass, others follow.
        sample_logprobs: [tokens, S] of these ids; -inf of those without mass.
    """

    ids: Ids
    logprobs: Floats
    finish_reason: str
    candidate_ids: Ids | None = None
    candidate_logprobs: Floats | None = None
    sample_ids: Ids | None = None
    sample_logprobs: Floats | None = None


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
