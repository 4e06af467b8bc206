"""What a scorer's shards say in figures: mass, tail and entropy by position, odd values. Pure.

Figures are sums and counts, so that shards are added one by one and none is kept. Shapes: T tokens,
K top-k, M tail buckets, P position buckets, E edges.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scores.columns import scores_of
from pipeline.scores.scores import Scores
from schemas.columns import flat_values, list_lengths
from schemas.ragged import offsets_within
from schemas.scoresignal import SCORE_COLUMNS

POSITIONS = 32
"""Position buckets: 0, 1, 2-3, 4-7, and so on in powers of two."""

MASS_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, np.inf)

TAIL_EDGES = (-np.inf, -20.0, -15.0, -10.0, -7.0, -5.0, -4.0, -3.0, -2.0, -1.0, np.inf)

ENTROPY_EDGES = (-np.inf, 0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, np.inf)

EDGES = {"mass": MASS_EDGES, "tail": TAIL_EDGES, "entropy": ENTROPY_EDGES}

SURE = 0.1
"""Nats of entropy up to which a probability of exactly 1 is no surprise."""

COLUMNS = tuple(column.name for column in SCORE_COLUMNS if not column.kind.is_whole)
"""Columns whose odd values are counted."""

Counts = NDArray[np.int64]

Sums = NDArray[np.float64]


def _counts(*shape: int) -> Any:
    return field(default_factory=lambda: np.zeros(shape, dtype=np.int64))


def _sums() -> Any:
    return field(default_factory=lambda: np.zeros(POSITIONS))


@dataclass
class ScoreStats:
    """Sums and counts over the rows seen so far; arrays are by position bucket."""

    rows: int = 0
    tokens: Counts = _counts(POSITIONS)
    mass: Sums = _sums()
    """Probability inside the top-k."""
    tail: Sums = _sums()
    """Probability outside, as it is stored."""
    entropy: Sums = _sums()
    entropy_tokens: Counts = _counts(POSITIONS)
    """Tokens whose entropy was kept."""
    probability: Sums = _sums()
    """Probability of the sampled token."""
    histograms: dict[str, Counts] = field(
        default_factory=lambda: {
            name: np.zeros((POSITIONS, len(edges) - 1), dtype=np.int64)
            for name, edges in EDGES.items()
        }
    )
    odd: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            name: dict.fromkeys(("nan", "minus_inf", "zero", "suspicious_zero"), 0)
            for name in COLUMNS
        }
    )
    """Odd values of each column."""

    def add(self, table: pa.Table) -> None:
        """Add the rows of a checked score table."""
        self.rows += table.num_rows
        bucket_T = position_bucket_of(offsets_within(list_lengths(table, "token_logprob")))
        if not len(bucket_T):
            return
        scores = scores_of(table)
        tail_TM = scores.tail_logprobs.astype(np.float64).reshape(len(bucket_T), -1)
        tail_T = np.exp(tail_TM).sum(axis=1)
        mass_T = np.exp(scores.topk_logprobs.astype(np.float64)).sum(axis=1)
        self.tokens += np.bincount(bucket_T, minlength=POSITIONS)
        self.mass += _summed(bucket_T, mass_T)
        self.tail += _summed(bucket_T, tail_T)
        self.probability += _summed(bucket_T, np.exp(scores.token_logprob.astype(np.float64)))
        with np.errstate(divide="ignore"):
            log_tail_T = np.log(tail_T)
        for name, values_T in (("mass", mass_T), ("tail", log_tail_T)):
            self.histograms[name] += _histogram(bucket_T, values_T, EDGES[name])
        if scores.entropy is not None:
            self._add_entropy(bucket_T, scores.entropy.astype(np.float64))
        self._add_odd(table, scores)

    def _add_entropy(self, bucket_T: Counts, entropy_T: Sums) -> None:
        self.entropy += _summed(bucket_T, np.nan_to_num(entropy_T))
        self.entropy_tokens += np.bincount(bucket_T, minlength=POSITIONS)
        self.histograms["entropy"] += _histogram(bucket_T, entropy_T, EDGES["entropy"])

    def _add_odd(self, table: pa.Table, scores: Scores) -> None:
        for name in COLUMNS:
            values = flat_values(table, name)
            self.odd[name]["nan"] += int(np.isnan(values).sum())
            self.odd[name]["minus_inf"] += int(np.isneginf(values).sum())
            self.odd[name]["zero"] += int((values == 0.0).sum())
        likely_T = scores.topk_logprobs[:, :1].max(axis=1, initial=-np.inf) > np.log(0.9)
        entropy_T = np.where(likely_T, 0.0, np.inf) if scores.entropy is None else scores.entropy
        unsure_T = entropy_T > SURE
        zeros = {
            "topk_logprobs": scores.topk_logprobs[:, 1:] == 0.0,
            "tail_logprobs": scores.tail_logprobs == 0.0,
            "token_logprob": (scores.token_logprob == 0.0) & (unsure_T | (scores.token_rank > 1)),
            "entropy": (entropy_T == 0.0) & ~likely_T,
        }
        for name, found in zeros.items():
            self.odd[name]["suspicious_zero"] += int(found.sum())


@dataclass
class StopStats:
    """How probable the teacher finds the last token of responses, by how they ended."""

    rows: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "unknown": 0})
    probability: dict[str, float] = field(
        default_factory=lambda: {"stop": 0.0, "length": 0.0, "unknown": 0.0}
    )
    """Sums of probabilities."""

    def add(self, table: pa.Table, reasons: dict[str, str]) -> None:
        """Add the rows of a score table; `reasons` has the finish reason of some sequences."""
        lengths = list_lengths(table, "token_logprob")
        last = (np.cumsum(lengths) - 1)[lengths > 0]
        probability = np.exp(flat_values(table, "token_logprob")[last].astype(np.float64))
        digests = table.column("sequence_digest").to_pylist()
        ends = np.array([reasons.get(digest, "unknown") for digest in digests])[lengths > 0]
        for reason in self.rows:
            mine = ends == reason
            self.rows[reason] += int(mine.sum())
            self.probability[reason] += float(probability[mine].sum())


def position_bucket_of(positions: NDArray[Any]) -> Counts:
    """Return the bucket of each position: 0 for 0, 1 for 1, 2 for 2-3, 3 for 4-7, and so on."""
    bits = np.frexp(positions.astype(np.float64))[1]
    return np.asarray(np.minimum(bits, POSITIONS - 1), dtype=np.int64)


def bounds_of(bucket: int) -> tuple[int, int]:
    """Return the first and the last position of a bucket."""
    return (0, 0) if bucket == 0 else (1 << (bucket - 1), (1 << bucket) - 1)


def _summed(bucket_T: Counts, values_T: Sums) -> Sums:
    sums = np.bincount(bucket_T, weights=values_T, minlength=POSITIONS)
    return np.asarray(sums, dtype=np.float64)


def _histogram(bucket_T: Counts, values_T: Sums, edges: tuple[float, ...]) -> Counts:
    """Return how many values of each position bucket fall between edges, int64 [P, E - 1]."""
    known = ~np.isnan(values_T)
    bins = np.searchsorted(edges[1:-1], values_T[known], side="right")
    width = len(edges) - 1
    flat = np.bincount(bucket_T[known] * width + bins, minlength=POSITIONS * width)
    return flat.reshape(POSITIONS, width).astype(np.int64)
