"""The codec `packed-v1`: the fewest bytes, in binary columns. Pure.

Ids become numbers by frequency, log-probabilities levels of a grid; numbers become bytes by
`varints`, and those of the top-k by `topk`. The sampled token's log-probability is exact.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.packed import topk
from pipeline.shards.packed.quantization import COARSE, FINE, levels, num_levels, values
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.packed.topk import get, put
from pipeline.shards.packed.varints import LIMIT, Counts
from schemas.columns import flat_values, list_array, list_lengths
from schemas.errors import DataError
from schemas.ragged import row_sums
from schemas.scoresignal import Kind, ScoreColumn, Signal
from schemas.tables import DIGEST, SCORES, check_table, with_absent

TOPK = ("topk_ids", "topk_logprobs")
"""Columns that `topk` stores, in a shape of their own."""

FIRST = ("tail_logprobs", "token_rank", "entropy")
"""Columns of numbers that stand before the others in a file, whose bytes have an order."""

Numbers = NDArray[np.int32]


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
    parts = topk.pieces(table, list_lengths(table, "topk_ids"))
    return pa.concat_tables([_encoded(part, signal, renumbering) for part in parts])


def _encoded(table: pa.Table, signal: Signal, renumbering: Renumbering | None) -> pa.Table:
    columns = {name: table.column(name) for name in _plain(signal).names}
    columns |= topk.encode(
        _ids(renumbering).to_numbers(flat_values(table, "topk_ids")),
        flat_values(table, "topk_logprobs"),
        list_lengths(table, "topk_ids"),
        per_token=flat_values(table, "topk_count").astype(np.int64) if signal.ragged else signal.k,
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
        columns[name] = list_array(way.to_values(numbers), counts, SCORES.field(name).type)

    def to_ids(numbers: Numbers) -> Any:
        _check_numbers(numbers, "topk_ids", vocab_size, where)
        return _ids(renumbering).to_values(numbers)

    entries = topk.num_entries(table)
    per_token = _per_token(columns, list_lengths(table, "token_logprob"), entries, signal, where)
    top = topk.decode(table, to_ids, per_token=per_token, where=where)
    for name, found in zip(TOPK, top, strict=True):
        columns[name] = list_array(found, entries, SCORES.field(name).type)
    return with_absent(columns)


def _per_token(
    columns: dict[str, Any], lengths: Counts, entries: Counts, signal: Signal, where: str
) -> int | Counts:
    """Return the top-k ids of each token: one number, or int64 [T] that add up to each row's.

    Raises:
        DataError: a row has more or fewer than its tokens call for.
    """
    per_token: int | Counts = signal.k
    fits = np.array_equal(entries, lengths * signal.k)
    if signal.ragged:
        per_token = counts = np.asarray(columns["topk_count"].values, dtype=np.int64)
        fits = len(counts) == lengths.sum() and counts.min(initial=1) > 0
        fits = fits and np.array_equal(entries, row_sums(counts, lengths))
    if not fits:
        raise DataError(f"{where}: a row has more or fewer top-k ids than its tokens call for")
    return per_token


@lru_cache(maxsize=16)
def _plain(signal: Signal) -> pa.Schema:
    """Return the fields that are stored as they are in memory."""
    exact = [c for c in signal.columns if c.kind in (Kind.EXACT_LOGPROBS, Kind.FLOATS)]
    return pa.schema(
        [DIGEST, *(SCORES.field(column.name).with_nullable(False) for column in exact)]
    )


def _coded(signal: Signal) -> list[ScoreColumn]:
    """Return the columns besides the top-k whose values become numbers, in the file's order."""
    there = {*_plain(signal).names, *TOPK}
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
    names = ["topk_ids", *(column.name for column in _coded(signal)), "topk_long_steps"]
    parts = [part for name in names for part in (name, f"{name}_more")]
    fields = [pa.field(name, pa.large_binary(), nullable=False) for name in [*parts, *topk.HALVES]]
    return pa.schema([*_plain(signal), *fields])


def _check_numbers(numbers: Numbers, name: str, below: int, where: str) -> None:
    """Make sure that each number is below a bound, such as the size of the vocabulary."""
    if numbers.max(initial=0) >= below:
        raise DataError(f"{where}: {name!r} holds a number outside [0, {below})")
