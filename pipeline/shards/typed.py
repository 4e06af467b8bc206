"""The codec `typed-v1`: flat lists that any Parquet reader opens as they are. Pure.

Ids take 16 bits where the vocabulary allows, log-probabilities that may be rounded are float16,
everything else is as in memory; columns that the signal does not have are absent.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards.packed.renumbering import Renumbering
from schemas.columns import flat_values, list_array, list_lengths
from schemas.scoresignal import Kind, ScoreColumn, Signal
from schemas.tables import DIGEST, SCORES, check_table, with_absent

LOWEST_FLOAT16 = np.float16(-65504.0)
"""Lowest finite log-probability that is stored, nats."""

_HALVES = pa.array(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
"""The float32 of every float16 bit pattern: looking it up beats converting."""


def encode(
    table: pa.Table, *, signal: Signal, vocab_size: int, renumbering: Renumbering | None
) -> pa.Table:
    """Return the stored columns of a score table; a renumbering is not used."""
    schema = _schema(signal, vocab_size)
    columns = [_converted(table, field.name, field.type) for field in schema]
    return pa.table(columns, schema=schema)


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
        DataError: a column is missing or of another type.
    """
    schema = _schema(signal, vocab_size)
    check_table(table, schema, where=where)
    return with_absent(
        {name: _converted(table, name, SCORES.field(name).type) for name in schema.names}
    )


@lru_cache(maxsize=16)
def _schema(signal: Signal, vocab_size: int) -> pa.Schema:
    return pa.schema([DIGEST, *(_field(column, vocab_size) for column in signal.columns)])


def _field(column: ScoreColumn, vocab_size: int) -> pa.Field:
    value = SCORES.field(column.name).type.value_type
    if column.kind is Kind.IDS and vocab_size <= 1 << 16:
        value = pa.uint16()
    elif column.kind is Kind.LOGPROBS:
        value = pa.float16()
    element = pa.field("element", value, nullable=False)  # a level less for each value
    kind = pa.large_list(element) if column.large else pa.list_(element)
    return pa.field(column.name, kind, nullable=False)


def _converted(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    """Return a column with another type of value, the same one where that is its own."""
    if table.schema.field(name).type == kind:
        return table.column(name)
    values = flat_values(table, name)
    if values.dtype == np.float16:
        values = pc.take(_HALVES, pa.array(values.view(np.uint16))).to_numpy()
    elif kind.value_type == pa.float16() and len(values) and values.min() < LOWEST_FLOAT16:
        values = np.where(np.isneginf(values), values, np.maximum(values, LOWEST_FLOAT16))
    values = values.astype(kind.value_type.to_pandas_dtype(), copy=False)
    return list_array(values, list_lengths(table, name), kind)
