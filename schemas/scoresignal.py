"""What a teacher's pass keeps of each position: the signal of a scorer, and the columns it fills.

`Signal` is the part of a scorer's identity that shapes its scores. `SCORE_COLUMNS` has a row for
each column of a score table: when it is there, how many values it has, and of what kind. Schema,
checks, codecs, arrays, exports and forecasts follow from these rows. Pure.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any, Literal, Self

from schemas.errors import ConfigError, DataError
from schemas.foreign import shown

SampleOf = Literal["teacher", "student"]
"""Whose threshold sample an unbiased sum is taken over."""

MOST = 1 << 24
"""Most values that a signal keeps of a position: as many as a vocabulary has ids."""

MOST_TEMPERATURES = 16
"""Most temperatures of a signal."""


@dataclass(frozen=True)
class Signal:
    """The signals of one pass; their numbers decide the shape of a score table.

    A field that came later has a default that leaves it out, so that older identities stay.
    """

    k: int
    """Most top-k ids of a position; 0 where a sample or the student's own ids are all it keeps."""
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
    sample: int = 0
    """Distinct ids of a threshold sample of what lies outside the top-k."""
    temperatures: tuple[float, ...] = ()
    """Temperatures at which the log-normaliser of the whole distribution is kept."""
    uneven: bool = False
    """Whether positions may have fewer than `candidates` of them, each a number of its own."""
    tail: Literal["exact", "derived"] = "exact"
    """`exact`: summed over the whole distribution; `derived`: what the top-k leave of 1."""
    entropy: bool = True
    """Whether the entropy of the whole distribution is kept."""

    @property
    def ragged(self) -> bool:
        """Whether positions may have fewer than `k` top-k ids."""
        return self.top_p is not None

    @property
    def columns(self) -> "tuple[ScoreColumn, ...]":
        """The columns that scores with this signal have, in the order of the table."""
        return tuple(column for column in SCORE_COLUMNS if column.per_token(self))

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Self:
        """Return the signal that an identity names; what it leaves out is off.

        Raises:
            DataError: it names a signal that this version of opd does not know.
        """
        unknown = sorted(set(words) - {field.name for field in fields(cls)})
        if unknown:
            raise DataError(
                f"scores have the signal {unknown[0]!r}, which this opd does not know: install a "
                "newer opd"
            )
        listed = {name: tuple(v) for name, v in words.items() if isinstance(v, list)}
        signal = cls(**{"k": None, **words, **listed})
        if not signal._is_possible():
            raise DataError(f"scores have a signal that no teacher gives: {shown(dict(words))}")
        return signal

    def _is_possible(self) -> bool:
        """Whether every field has a value that a configuration may give it."""
        least = {"k": 0, "min_k": 1, "tail_buckets": 1, "candidates": 0, "draws": 0, "sample": 0}
        numbers = {name: getattr(self, name) for name in least}
        return (
            all(type(n) is int and least[name] <= n <= MOST for name, n in numbers.items())
            and (self.k > 0 or (self.top_p is None and self.sample + self.candidates > 0))
            and self.min_k <= max(self.k, 1)
            and (self.top_p is None or (type(self.top_p) in (int, float) and 0 < self.top_p <= 1))
            and type(self.temperatures) is tuple
            and len(self.temperatures) == len(set(self.temperatures)) <= MOST_TEMPERATURES
            and all(type(t) in (int, float) and 0 < t < math.inf for t in self.temperatures)
            and self.tail in ("exact", "derived")
            and type(self.entropy) is bool
            and type(self.uneven) is bool
            and (self.candidates > 0 or not self.uneven)
        )

    def words(self) -> dict[str, Any]:
        """Return the signal as an identity names it: `k`, and whatever is not off."""
        default = asdict(Signal(self.k))
        words = {name: v for name, v in asdict(self).items() if name == "k" or v != default[name]}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in words.items()}


_FROM_TOPK = ("k", "top_p", "min_k", "tail", "entropy")

FURTHER: dict[str, Any] = {f.name: f.default for f in fields(Signal) if f.name not in _FROM_TOPK}
"""Fields of what only full logits give, and the value that leaves it out."""


def signal_for(engine: str, signal: Signal) -> Signal:
    """Return what an engine can give of a signal, as its identity names it.

    Raises:
        ConfigError: it lacks something that cannot be left out.
    """
    if engine != "server":
        return signal
    for name, off in FURTHER.items():
        if getattr(signal, name) != off:
            raise ConfigError(
                f"{name} needs full logits, which no server gives: set score.engine to 'vllm' or "
                "'hf'"
            )
    return replace(signal, tail="derived", entropy=False)


class Kind(Enum):
    """What the values of a column are; a codec has one form for each kind."""

    IDS = "ids"
    """Ids of the vocabulary, int32."""
    NUMBERS = "numbers"
    """Whole numbers below 2^24, int32: ranks and counts."""
    LOGPROBS = "logprobs"
    """Log-probabilities that any codec may round to 16 bits."""
    EXACT_LOGPROBS = "exact logprobs"
    """Log-probabilities that no codec rounds."""
    MASSES = "masses"
    """Log-probabilities of sets of ids; `packed-v1` rounds them, several of a token coarsely."""
    ENTROPIES = "entropies"
    """Nats from 0 up; `packed-v1` rounds them coarsely."""
    FLOATS = "floats"
    """Any float32 but NaN, which no codec rounds."""

    @property
    def is_whole(self) -> bool:
        """Whether the values are int32; the others are float32."""
        return self in (Kind.IDS, Kind.NUMBERS)

    @property
    def is_logprob(self) -> bool:
        """Whether no value may be above 0."""
        return self in (Kind.LOGPROBS, Kind.EXACT_LOGPROBS, Kind.MASSES)


@dataclass(frozen=True)
class ScoreColumn:
    """One column of a score table: a list for each sequence, token by token."""

    name: str
    kind: Kind
    per_token: Callable[[Signal], int]
    """Values of each token; 0 where the signal does not have the column, which is null then."""
    counted_by: str | None = None
    """The column of counts that says how many of a token's values are kept, where it is there."""
    most: Callable[[Signal], int] | None = None
    """Largest count, in a column of counts."""
    least: int = 1
    """Smallest count, there."""
    adds_up: bool = False
    """Whether the counts of a token are of runs of equal values, and add up to `most`; otherwise a
    token has one count, of the first values."""
    large: bool = False
    """Whether a table may have more than 2^31 values of it."""
    wide: bool = False
    """Whether the array has a second axis even where a token has one value."""

    @property
    def is_optional(self) -> bool:
        """Whether some signal does not have the column."""
        least = (Signal(1, entropy=False), Signal(0, sample=1, entropy=False))
        return not all(map(self.per_token, least))


def _ranked(name: str, kind: Kind, per_token: Callable[[Signal], int]) -> ScoreColumn:
    count = name.split("_")[0] + "_count"
    return ScoreColumn(name, kind, per_token, counted_by=count, large=True, wide=True)


SCORE_COLUMNS = (
    _ranked("topk_ids", Kind.IDS, lambda s: s.k),
    _ranked("topk_logprobs", Kind.LOGPROBS, lambda s: s.k),
    ScoreColumn("topk_count", Kind.NUMBERS, lambda s: int(s.ragged), most=lambda s: s.k),
    ScoreColumn("tail_logprobs", Kind.MASSES, lambda s: s.tail_buckets),
    ScoreColumn("token_logprob", Kind.EXACT_LOGPROBS, lambda s: 1),
    ScoreColumn("token_rank", Kind.NUMBERS, lambda s: 1),
    ScoreColumn("entropy", Kind.ENTROPIES, lambda s: int(s.entropy)),
    replace(_ranked("candidate_ids", Kind.IDS, lambda s: s.candidates), large=False),
    replace(_ranked("candidate_logprobs", Kind.LOGPROBS, lambda s: s.candidates), large=False),
    ScoreColumn("draw_ids", Kind.IDS, lambda s: s.draws, counted_by="draw_counts", wide=True),
    ScoreColumn(
        "draw_counts", Kind.NUMBERS, lambda s: s.draws, most=lambda s: s.draws, adds_up=True
    ),
    _ranked("sample_ids", Kind.IDS, lambda s: s.sample),
    _ranked("sample_logprobs", Kind.LOGPROBS, lambda s: s.sample),
    ScoreColumn(
        "sample_count", Kind.NUMBERS, lambda s: int(s.sample > 0), most=lambda s: s.sample, least=0
    ),
    ScoreColumn("sample_threshold", Kind.MASSES, lambda s: int(s.sample > 0)),
    ScoreColumn("log_normalisers", Kind.FLOATS, lambda s: len(s.temperatures), wide=True),
    ScoreColumn(
        "candidate_count", Kind.NUMBERS, lambda s: int(s.uneven), most=lambda s: s.candidates
    ),
)
"""Every column of a score table besides `sequence_digest`, in its order. A further one comes last:
the order is part of the stored bytes."""
