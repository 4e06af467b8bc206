"""A run on paper at any size: objects, requests, index, storage, workers, and what gives out first.

Pure but for the rates of the run, which `pipeline/runs/forecast.py` reads. Shapes of the store are
counted in tokens of responses; nothing here is a promise of a store, which its owner knows better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cache.index.entries import ENTRY, SHARD
from pipeline.runs.forecast import Forecast
from schemas.config.run import MAX_ROUNDS, RunConfig, usual_signal_of

SIZES = tuple(10**power for power in range(6, 13))
"""Response tokens that are laid out: a million to a million millions."""

DAY_S = 86_400.0

WRITES, READS, LISTS = (6, 9), (6, 11), (1, 3)
"""Requests of a unit: of rollout, and of each teacher that scores it. Counted on sixteen units of
the hf engine, leases included; deletions cost nothing."""

PUT_USD, GET_USD, MONTH_USD = 5e-6, 4e-7, 0.023
"""Of a write or a list, of a read, of a gigabyte and month: list prices of S3 Standard."""

PUTS_PER_S, GETS_PER_S = 3_500, 5_500
"""What S3 takes for a prefix before it splits it."""

BYTES = {"typed-v1": (13.0, 3.06), "packed-v1": (7.5, 2.0)}
"""Codec → bytes of a token, and of each of its k: measured on real scores of 262,144 ids."""


@dataclass(frozen=True)
class Size:
    """A run of some size."""

    tokens: int
    """Of responses."""
    rows: int
    objects: int
    index_bytes: int
    store_bytes: int
    """Of the scores of all teachers."""
    puts_per_s: float
    gets_per_s: float
    """At the pace that ends it in the days that were asked for."""
    requests_usd: float
    month_usd: float
    """Of what is stored, each month."""
    workers: int | None
    """Of scoring; None where nothing was timed."""


@dataclass(frozen=True)
class Limit:
    """Something that a growing run meets."""

    tokens: float
    """Response tokens at which it is met."""
    what: str


@dataclass(frozen=True)
class Scale:
    """A run at several sizes."""

    sizes: list[Size]
    limits: list[Limit]
    """The one that is met first comes first."""
    month_usd: dict[str, dict[int, float]]
    """Codec → k → dollars a month for 10^9 tokens of one teacher."""
    days: float
    basis: str
    """What tokens of a response are taken from: a measured round, or the limits."""


def scale(
    config: RunConfig, rates: Forecast, *, days: float, sizes: Sequence[int] = SIZES
) -> Scale:
    """Return a run at several sizes.

    Args:
        config: of the run.
        rates: one round of it, as forecast.
        days: in which each size is to be done.
        sizes: response tokens.
    """
    shape = _Shape(config, rates)
    return Scale(
        sizes=[shape.at(tokens, days) for tokens in sizes],
        limits=sorted(shape.limits(days), key=lambda limit: limit.tokens),
        month_usd={
            codec: {k: round((fixed + each * k) * MONTH_USD, 2) for k in (4, 8, 16, 32, 64, 128)}
            for codec, (fixed, each) in BYTES.items()
        },
        days=days,
        basis=rates.basis,
    )


class _Shape:
    """What a response token of a run brings with it."""

    def __init__(self, config: RunConfig, rates: Forecast) -> None:
        self._teachers = len(config.teachers)
        self._unit_rows = max(1.0, rates.rows / max(1, rates.units))
        self._round_tokens = max(1, rates.response_tokens)
        self._row_tokens = max(1.0, rates.response_tokens / max(1, rates.rows))
        self._objects = rates.objects / self._round_tokens
        self._token_bytes = self._bytes_of(config, rates)
        seconds = rates.seconds.get("score", 0.0)
        self._score_rate = self._round_tokens / seconds if seconds else None

    def _bytes_of(self, config: RunConfig, rates: Forecast) -> float:
        if rates.basis != "limits":
            return rates.cache_bytes / self._round_tokens
        signal = usual_signal_of(config)
        fixed, each = BYTES[config.score.codec]
        ids = signal.k + signal.sample + signal.candidates + signal.draws
        kept = ids + (signal.tail_buckets - 1) / 2
        return self._teachers * (fixed + each * kept)

    def _requests(self, of: tuple[int, int]) -> float:
        """Return the requests of a kind that a token brings."""
        return (of[0] + self._teachers * of[1]) / (self._unit_rows * self._row_tokens)

    @property
    def _puts(self) -> float:
        return self._requests(WRITES) + self._requests(LISTS)

    def at(self, tokens: int, days: float) -> Size:
        """Return the run with that many response tokens."""
        rows = math.ceil(tokens / self._row_tokens)
        units = math.ceil(rows / self._unit_rows)
        stored = tokens * self._token_bytes
        puts, gets = tokens * self._puts, tokens * self._requests(READS)
        workers = None
        if self._score_rate is not None:
            workers = math.ceil(tokens / (self._score_rate * days * DAY_S))
        return Size(
            tokens=tokens,
            rows=rows,
            objects=round(tokens * self._objects),
            index_bytes=self._teachers * (rows * ENTRY.itemsize + units * SHARD.itemsize),
            store_bytes=round(stored),
            puts_per_s=puts / (days * DAY_S),
            gets_per_s=gets / (days * DAY_S),
            requests_usd=puts * PUT_USD + gets * GET_USD,
            month_usd=stored / 1e9 * MONTH_USD,
            workers=workers,
        )

    def limits(self, days: float) -> list[Limit]:
        """Return what gives out, and at how many response tokens."""
        seconds = days * DAY_S
        return [
            Limit(PUTS_PER_S * seconds / self._puts, f"{PUTS_PER_S:,} writes a second to a prefix"),
            Limit(
                GETS_PER_S * seconds / self._requests(READS),
                f"{GETS_PER_S:,} reads a second from a prefix",
            ),
            Limit(float(MAX_ROUNDS) * self._round_tokens, f"{MAX_ROUNDS:,} rounds of this size"),
            Limit(2.0**32 * self._unit_rows * self._row_tokens, "2^32 shards of one scorer"),
        ]
