"""The codec `packed-v1`: the fewest bytes, in binary columns. Pure.

Ids become numbers by frequency, log-probabilities levels of a grid; numbers become bytes by
`varints`, those of the top-k and of a sample by `ranked`. The sampled token's log-probability is
exact.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.packed import ranked
from pipeline.shards.packed.quantization import COARSE, FINE, levels, num_levels, values
from pipeline.shards.packed.ranked import get, put
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.packed.varints import LIMIT, Counts
from schemas.columns import flat_values, list_array, list_lengths
from schemas.errors import DataError
from schemas.ragged import row_sums
from schemas.scoresignal import Kind, ScoreColumn, Signal
from schemas.tables import DIGEST, SCORES, check_table, with_absent

RANKED = {"topk": "top-k", "sample": "sampled"}
"""Beginnings of the columns of ids and log-probabilities that `ranked` stores, and their words."""

FIRST = ("tail_logprobs", "token_rank", "entropy")
"""Columns of numbers that stand before the others in a file, whose bytes have an order."""

Numbers = NDArray[np.int32]


class _Ranks(NamedTuple):
    """What a signal has of ranked ids."""

    most: int
    """Ids of a token."""
    counted: ScoreColumn | None
    """Which column has their number, where tokens may have fewer."""


class _Way(NamedTuple):
    """How the values of a column become numbers, and back."""

    to_numbers: Callable[[Any], Numbers]
    to_values: Callable[[Numbers], Any]
    below: int | None = None
    """What every number is below; None for the size of the vocabulary."""


def encode(
    table: pa.Table, *, signal: Signal, vocab_size: int, renumbering: Renumbering | None
) -> pa.Table:
    """Return the stored columns of a score table.

    Raises:
        DataError: top-k log-probabilities are not in rank order.
    """
    names = [f"{name}_ids" for name in _ranked(signal)] or ["token_logprob"]
    parts = ranked.pieces(table, list_lengths(table, names[0]))
    return pa.concat_tables([_encoded(part, signal, renumbering) for part in parts])


def _encoded(table: pa.Table, signal: Signal, renumbering: Renumbering | None) -> pa.Table:
    columns = {name: table.column(name) for name in _plain(signal).names}
    for name, (most, count) in _ranked(signal).items():
        columns |= ranked.encode(
            name,
            _ids(renumbering).to_numbers(flat_values(table, f"{name}_ids")),
            flat_values(table, f"{name}_logprobs"),
            entries=list_lengths(table, f"{name}_ids"),
            per_token=flat_values(table, count.name).astype(np.int64) if count else most,
        )
    for column in _coded(signal):
        name, way = column.name, _way(column, signal, renumbering)
        columns |= put(name, way.to_numbers(flat_values(table, name)), list_lengths(table, name))
    return pa.table(columns, schema=_schema(signal))


def decode(
    table: pa.Table,
    *,
    signal: Signal,
    vocab_size: int,
    renumbering: Renumbering | None,
    where: str,
) -> pa.Table:
    """Return the score table of stored columns.

    Raises:
        DataError: a column is missing or of another type, or its bytes do not fit the others'.
    """
    check_table(table, _schema(signal), where=where)
    columns = {name: table.column(name) for name in _plain(signal).names}
    for column in _coded(signal):
        name, way = column.name, _way(column, signal, renumbering)
        numbers, counts = get(table, name, where)
        _check_numbers(numbers, name, vocab_size if way.below is None else way.below, where)
        columns[name] = list_array(way.to_values(numbers), counts, _kind(name))

    def to_ids(name: str, numbers: Numbers) -> Any:
        _check_numbers(numbers, name, vocab_size, where)
        return _ids(renumbering).to_values(numbers)

    for name, ranks in _ranked(signal).items():
        entries = ranked.num_entries(name, table)
        per_token = _per_token(name, ranks, columns, entries, where)
        give = partial(to_ids, f"{name}_ids")
        found = ranked.decode(name, table, give, per_token=per_token, where=where)
        for part, some in zip(("ids", "logprobs"), found, strict=True):
            columns[f"{name}_{part}"] = list_array(some, entries, _kind(f"{name}_{part}"))
    return with_absent(columns)


def _per_token(
    name: str, ranks: _Ranks, columns: dict[str, Any], entries: Counts, where: str
) -> int | Counts:
    """Return the ranked ids of each token: one number, or int64 [T] that add up to each row's.

    Raises:
        DataError: a row has more or fewer than its tokens call for.
    """
    per_token: int | Counts = ranks.most
    lengths = list_lengths(pa.table({"of": columns["token_logprob"]}), "of")
    fits = np.array_equal(entries, lengths * ranks.most)
    if ranks.counted is not None:
        per_token = counts = np.asarray(columns[ranks.counted.name].values, dtype=np.int64)
        least = ranks.counted.least
        fits = len(counts) == lengths.sum() and counts.min(initial=least) >= least
        fits = fits and np.array_equal(entries, row_sums(counts, lengths))
    if not fits:
        raise DataError(
            f"{where}: a row has more or fewer {RANKED[name]} ids than its tokens call for"
        )
    return per_token


def _ranked(signal: Signal) -> dict[str, _Ranks]:
    """Return what `ranked` stores of a signal, by the beginnings of the columns."""
    there = {column.name: column for column in signal.columns}
    return {
        name: _Ranks(there[f"{name}_ids"].per_token(signal), there.get(f"{name}_count"))
        for name in RANKED
        if f"{name}_ids" in there
    }


def _kind(name: str) -> pa.DataType:
    return SCORES.field(name).type


@lru_cache(maxsize=16)
def _plain(signal: Signal) -> pa.Schema:
    """Return the fields that are stored as they are in memory."""
    exact = [c for c in signal.columns if c.kind in (Kind.EXACT_LOGPROBS, Kind.FLOATS)]
    return pa.schema(
        [DIGEST, *(SCORES.field(column.name).with_nullable(False) for column in exact)]
    )


def _coded(signal: Signal) -> list[ScoreColumn]:
    """Return the columns that `ranked` does not store, as numbers, in the file's order."""
    parts = {f"{name}_{part}" for name in RANKED for part in ("ids", "logprobs")}
    there = {*_plain(signal).names, *parts}
    coded = [column for column in signal.columns if column.name not in there]
    return sorted(coded, key=lambda column: column.name not in FIRST)


def _way(column: ScoreColumn, signal: Signal, renumbering: Renumbering | None) -> _Way:
    """Return how the values of a column become numbers."""
    ways = {
        Kind.IDS: _ids(renumbering),
        Kind.NUMBERS: _Way(lambda v: v, lambda n: n, LIMIT),
        Kind.LOGPROBS: _grid(FINE),
        Kind.MASSES: _grid(FINE if column.per_token(signal) == 1 else COARSE),
        Kind.ENTROPIES: _Way(
            lambda v: levels(-v, drop=COARSE),
            lambda n: -values(n, drop=COARSE),
            num_levels(COARSE),
        ),
    }
    return ways[column.kind]


def _ids(renumbering: Renumbering | None) -> _Way:
    if renumbering is None:
        return _Way(lambda v: v, lambda n: n)
    return _Way(_lookup(renumbering.numbers_V), _lookup(renumbering.ids_V))


def _lookup(table_V: Numbers) -> Callable[[Any], Numbers]:
    return lambda places: table_V.take(places)


def _grid(drop: int) -> _Way:
    return _Way(lambda v: levels(v, drop=drop), lambda n: values(n, drop=drop), num_levels(drop))


@lru_cache(maxsize=16)
def _schema(signal: Signal) -> pa.Schema:
    ids, steps, halves = (
        [f"{name}_{part}" for name in _ranked(signal) for part in parts]
        for parts in (("ids",), ("long_steps",), ("ids_low", "steps"))
    )
    names = [*ids, *(column.name for column in _coded(signal)), *steps]
    parts = [part for name in names for part in (name, f"{name}_more")]
    fields = [pa.field(name, pa.large_binary(), nullable=False) for name in [*parts, *halves]]
    return pa.schema([*_plain(signal), *fields])


def _check_numbers(numbers: Numbers, name: str, below: int, where: str) -> None:
    """Make sure that each number is below a bound, such as the size of the vocabulary."""
    if numbers.max(initial=0) >= below:
        raise DataError(f"{where}: {name!r} holds a number outside [0, {below})")
