"""The codec `packed-v1`: the fewest bytes, in binary columns. Pure.

Ids become numbers by frequency, log-probabilities levels of a grid; numbers become bytes by
`varints`, and those of the top-k by `topk`. The sampled token's log-probability is exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.packed import topk
from pipeline.shards.packed.quantization import COARSE, FINE, levels, values
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.packed.topk import get, put
from pipeline.shards.packed.varints import Counts
from schemas.columns import flat_values, list_array, list_lengths
from schemas.errors import DataError
from schemas.ragged import row_sums
from schemas.scoresignal import Signal
from schemas.tables import LOGPROBS, SCORES, check_table

PLAIN = ("sequence_digest", "token_logprob")
"""Columns that are stored as they are."""


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
    parts = topk.pieces(table, list_lengths(table, "topk_ids"))
    return pa.concat_tables([_encoded(part, signal, renumbering) for part in parts])


def _encoded(table: pa.Table, signal: Signal, renumbering: Renumbering | None) -> pa.Table:
    columns = {name: table.column(name) for name in PLAIN}
    ways = _ways(signal, renumbering)
    columns |= topk.encode(
        ways.pop("topk_ids").to_numbers(flat_values(table, "topk_ids")),
        flat_values(table, "topk_logprobs"),
        list_lengths(table, "topk_ids"),
        per_token=flat_values(table, "topk_count").astype(np.int64) if signal.ragged else signal.k,
    )
    for name, way in ways.items():
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
    columns = {name: table.column(name) for name in PLAIN}
    ways = _ways(signal, renumbering)
    ids = ways.pop("topk_ids")

    def to_ids(numbers: Numbers) -> Any:
        return ids.to_values(_in_range(numbers, "topk_ids", vocab_size, where))

    for name, way in ways.items():
        numbers, counts = get(table, name, where)
        found = way.to_values(_in_range(numbers, name, vocab_size, where))
        columns[name] = list_array(found, counts, SCORES.field(name).type)
    entries = topk.num_entries(table)
    per_token = _per_token(columns, list_lengths(table, "token_logprob"), entries, signal, where)
    top = topk.decode(table, to_ids, per_token=per_token, where=where)
    for name, found in zip(("topk_ids", "topk_logprobs"), top, strict=True):
        columns[name] = list_array(found, entries, SCORES.field(name).type)
    absent = {f.name: pa.nulls(table.num_rows, f.type) for f in SCORES if f.name not in columns}
    return pa.table({**columns, **absent}, schema=SCORES)


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
    return lambda places: table_V.take(places)


def _grid(drop: int) -> _Way:
    return _Way(lambda v: levels(v, drop=drop), lambda n: values(n, drop=drop))


def _schema(signal: Signal) -> pa.Schema:
    names = [*_ways(signal, None), "topk_long_steps"]
    parts = [part for name in names for part in (name, f"{name}_more")]
    halves = topk.HALVES
    fields = [pa.field(name, pa.large_binary(), nullable=False) for name in [*parts, *halves]]
    exact = pa.field("token_logprob", LOGPROBS, nullable=False)
    return pa.schema([SCORES.field("sequence_digest"), exact, *fields])


def _in_range(numbers: Numbers, name: str, vocab_size: int, where: str) -> Numbers:
    """Return numbers, of ids only where each is below the size of the vocabulary."""
    if name.endswith("_ids") and numbers.max(initial=0) >= vocab_size:
        raise DataError(f"{where}: {name!r} holds a number outside [0, {vocab_size})")
    return numbers
