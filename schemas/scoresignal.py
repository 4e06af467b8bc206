"""What a teacher's pass keeps of each position: the part of a scorer's identity that shapes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from schemas.errors import ConfigError


@dataclass(frozen=True)
class Signal:
    """The signals of one pass; their numbers decide the shape of a score table."""

    k: int
    """Most top-k ids of a position."""
    top_p: float | None = None
    """Probability mass at which a position's top-k ends; None for k ids everywhere."""
    min_k: int = 1
    """Fewest top-k ids of a position where `top_p` cuts."""
    tail_buckets: int = 1
    """Parts of the vocabulary whose mass outside the top-k is kept apart."""
    candidates: int = 0
    """Student's own ids of a position whose log-probabilities are kept."""
    draws: int = 0
    """Ids drawn from the teacher's whole distribution at each position."""
    tail: Literal["exact", "derived"] = "exact"
    """`exact`: summed over the whole distribution; `derived`: what the top-k leave of 1."""
    entropy: bool = True
    """Whether the entropy of the whole distribution is kept."""

    @property
    def ragged(self) -> bool:
        """Whether positions may have fewer than `k` top-k ids."""
        return self.top_p is not None

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Self:
        """Return the signal that an identity names; what it leaves out is off."""
        return cls(**words)

    def words(self) -> dict[str, Any]:
        """Return the signal as an identity names it: `k`, and whatever is not off."""
        default = asdict(Signal(self.k))
        return {name: v for name, v in asdict(self).items() if name == "k" or v != default[name]}


def signal_for(engine: str, signal: Signal) -> Signal:
    """Return what an engine can give of a signal, as its identity names it.

    Raises:
        ConfigError: it lacks something that cannot be left out.
    """
    if engine != "server":
        return signal
    for name in ("tail_buckets", "candidates", "draws"):
        if getattr(signal, name) != getattr(Signal(1), name):
            raise ConfigError(
                f"{name} needs full logits, which no server gives: set score.engine to 'vllm' or "
                "'hf'"
            )
    return replace(signal, tail="derived", entropy=False)
