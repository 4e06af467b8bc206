"""The codec `packed-v1`: the fewest bytes, in binary columns. Pure.

Ids become numbers by frequency, log-probabilities levels of a grid; numbers become bytes by
`numbercode`. Of top-k ids the lowest four bits stand apart, and of top-k levels only the steps from
rank to rank are kept, both two to a byte. The sampled token's log-probability is exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import numbercode
from pipeline.logprobgrid import COARSE, FINE, levels, values
from pipeline.nibbles import joined, split
from pipeline.numbercode import Coded, Counts
from pipeline.renumbering import Renumbering
from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import (
    LOGPROBS,
    SCORES,
    binary_array,
    binary_values,
    check_table,
    flat_values,
    list_array,
    list_lengths,
)

ESCAPE = 15
"""Step that says: the rest of it is among the long ones."""

HALVES = ("topk_ids_low", "topk_steps")

Numbers = NDArray[np.int32]


class _Way(NamedTuple):
    """How the values of a column become numbers, and back."""

    to_numbers: Callable[[Any], Numbers]
    to_values: Callable[[Numbers], Any]


def encode(
    table: pa.Table, *, signal: Signal, vocab_size: int, renumbering: Renumbering | None
) -> pa.Table:
    """Return the stored columns of a score table.

    Raises:
        DataError: top-k log-probabilities are not in rank order.
    """
    columns = {name: table.column(name) for name in ("sequence_digest", "token_logprob")}
    entries = list_lengths(table, "topk_ids")
    for name, way in _ways(signal, renumbering).items():
        numbers = way.to_numbers(flat_values(table, name))
        if name == "topk_ids":
            columns["topk_ids_low"] = binary_array(*joined(numbers & 15, entries))
            numbers = numbers >> 4
        _put(columns, name, numbers, list_lengths(table, name))
    found = levels(flat_values(table, "topk_logprobs"), drop=FINE)
    steps = _steps(found, _starts(table, signal))
    columns["topk_steps"] = binary_array(*joined(np.minimum(steps, ESCAPE), entries))
    long = np.flatnonzero(steps >= ESCAPE)
    counts = numbercode.rows_of(long, np.cumsum(entries))
    _put(columns, "topk_long_steps", steps[long] - ESCAPE, counts)
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
    columns = {name: table.column(name) for name in ("sequence_digest", "token_logprob")}
    for name, way in _ways(signal, renumbering).items():
        numbers, counts = _get(table, name, where)
        if name == "topk_ids":
            numbers <<= 4
            numbers |= _halves(table, "topk_ids_low", counts, where)
        _check_range(numbers, name, vocab_size, where)
        columns[name] = list_array(way.to_values(numbers), counts, SCORES.field(name).type)
    columns["topk_logprobs"] = _topk_logprobs(table, columns, signal, where)
    absent = {f.name: pa.nulls(table.num_rows, f.type) for f in SCORES if f.name not in columns}
    return pa.table({**columns, **absent}, schema=SCORES)


def _ways(signal: Signal, renumbering: Renumbering | None) -> dict[str, _Way]:
    """Return how each column of numbers is coded, for the columns that a signal has."""
    plain = _Way(lambda v: v, lambda n: n)
    ids = plain
    if renumbering is not None:
        ids = _Way(_lookup(renumbering.numbers_V), _lookup(renumbering.ids_V))
    tail = FINE if signal.tail_buckets == 1 else COARSE
    ways = {"topk_ids": ids, "tail_logprobs": _grid(tail), "token_rank": plain}
    if signal.entropy:
        ways["entropy"] = _Way(lambda v: levels(-v, drop=COARSE), lambda n: -values(n, drop=COARSE))
    if signal.ragged:
        ways["topk_count"] = plain
    if signal.candidates:
        ways |= {"candidate_ids": ids, "candidate_logprobs": _grid(FINE)}
    if signal.draws:
        ways |= {"draw_ids": ids, "draw_counts": plain}
    return ways


def _lookup(table_V: Numbers) -> Callable[[Any], Numbers]:
    """Return what looks up int32 places in a table; unlike numpy's, it copies no 64-bit ones."""
    values_V = pa.array(table_V)
    return lambda places: pc.take(values_V, pa.array(places)).to_numpy()


def _grid(drop: int) -> _Way:
    return _Way(lambda v: levels(v, drop=drop), lambda n: values(n, drop=drop))


def _schema(signal: Signal) -> pa.Schema:
    names = [*_ways(signal, None), "topk_long_steps"]
    parts = [part for name in names for part in (name, f"{name}_more")]
    fields = [pa.field(name, pa.large_binary(), nullable=False) for name in [*parts, *HALVES]]
    exact = pa.field("token_logprob", LOGPROBS, nullable=False)
    return pa.schema([SCORES.field("sequence_digest"), exact, *fields])


def _put(columns: dict[str, Any], name: str, numbers: Numbers, counts: Counts) -> None:
    coded = numbercode.encode(numbers, counts)
    columns[name] = binary_array(coded.heads, counts)
    columns[f"{name}_more"] = binary_array(coded.more, coded.more_counts)


def _get(table: pa.Table, name: str, where: str) -> tuple[Numbers, Counts]:
    heads, counts = binary_values(table, name)
    coded = Coded(heads, *binary_values(table, f"{name}_more"))
    return numbercode.decode(coded, counts, where=f"{where}, column {name!r}"), counts


def _halves(table: pa.Table, name: str, counts: Counts, where: str) -> Any:
    """Return a column of half bytes, uint8, rows joined."""
    pairs, lengths = binary_values(table, name)
    if not np.array_equal(lengths, (counts + 1) // 2):
        raise DataError(f"{where}: {name!r} has not half a byte for each of the top-k ids")
    return split(pairs, counts)


def _starts(table: pa.Table, signal: Signal) -> NDArray[np.int64]:
    """Return where the entries of each token begin among those of all rows."""
    if not signal.ragged:
        return np.arange(0, len(flat_values(table, "topk_ids")), signal.k)
    counts = flat_values(table, "topk_count").astype(np.int64)
    return np.asarray(np.cumsum(counts) - counts)


def _steps(found: Numbers, starts: NDArray[np.int64]) -> Numbers:
    """Return by how much each level exceeds the one before; the first of a token, 0."""
    steps = np.empty_like(found)
    np.subtract(found[1:], found[:-1], out=steps[1:])
    steps[starts] = found[starts]
    if len(steps) and steps.min() < 0:
        raise DataError("top-k log-probabilities to be packed are not in rank order")
    return steps


def _topk_logprobs(
    table: pa.Table, columns: dict[str, Any], signal: Signal, where: str
) -> pa.Array:
    """Return the column of top-k log-probabilities, from its steps."""
    lengths, entries = list_lengths(table, "token_logprob"), columns["topk_ids"].value_lengths()
    entries = entries.to_numpy()
    if signal.ragged:
        per_token = columns["topk_count"].values.to_numpy().astype(np.int64)
        fits = len(per_token) == lengths.sum() and per_token.sum() == entries.sum()
    else:
        per_token, fits = signal.k, np.array_equal(entries, lengths * signal.k)
    if not fits:
        raise DataError(f"{where}: a row has more or fewer top-k ids than its tokens call for")
    short = _halves(table, "topk_steps", entries, where)
    steps = short.astype(np.int32)
    long, rest = np.flatnonzero(short == ESCAPE), _get(table, "topk_long_steps", where)[0]
    if len(long) != len(rest):
        raise DataError(f"{where}: {len(rest)} long steps for {len(long)} escapes")
    steps[long] += rest
    found = _levels(steps, per_token)
    return list_array(values(found, drop=FINE), entries, SCORES.field("topk_logprobs").type)


def _levels(steps: Numbers, per_token: Any) -> Numbers:
    """Return the running sum of the steps within each token; a sum that wraps is harmless."""
    if isinstance(per_token, int):
        return np.cumsum(steps.reshape(-1, per_token), axis=1, dtype=np.int32).reshape(-1)
    sums = np.cumsum(steps, dtype=np.int32)
    starts = np.cumsum(per_token) - per_token
    return np.asarray(sums - np.repeat(sums[starts] - steps[starts], per_token))


def _check_range(numbers: Numbers, name: str, vocab_size: int, where: str) -> None:
    if name.endswith("_ids") and numbers.max(initial=0) >= vocab_size:
        raise DataError(f"{where}: {name!r} holds a number outside [0, {vocab_size})")
