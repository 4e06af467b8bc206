"""The codec `typed-v1`: flat lists that any Parquet reader opens as they are. Pure.

Ids take 16 bits where the vocabulary allows, top-k and candidate log-probabilities are float16,
everything else is as in memory; columns that the signal does not have are absent.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards.packed.renumbering import Renumbering
from schemas.columns import flat_values, list_array, list_lengths
from schemas.scoresignal import Signal
from schemas.tables import SCORES, check_table

LOWEST = np.float16(-65504.0)
"""Lowest finite log-probability that is stored, nats."""


_HALVES = pa.array(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
"""The float32 of every float16 bit pattern: looking it up beats converting."""


IDS = ("topk_ids", "candidate_ids", "draw_ids")


ROUNDED = ("topk_logprobs", "candidate_logprobs")


def encode(
    table: pa.Table, *, signal: Signal, vocab_size: int, renumbering: Renumbering | None
) -> pa.Table:
    """Return the stored columns of a score table; a renumbering is not used."""
    schema = _schema(signal, vocab_size)
    columns = [_stored(table, field) for field in schema]
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
    present = set(schema.names)
    columns = [
        _converted(table, f.name, f.type) if f.name in present else pa.nulls(table.num_rows, f.type)
        for f in SCORES
    ]
    return pa.table(columns, schema=SCORES)


def _schema(signal: Signal, vocab_size: int) -> pa.Schema:
    absent = set()
    if not signal.ragged:
        absent |= {"topk_count"}
    if not signal.entropy:
        absent |= {"entropy"}
    if not signal.candidates:
        absent |= {"candidate_ids", "candidate_logprobs"}
    if not signal.draws:
        absent |= {"draw_ids", "draw_counts"}
    fields = [_field(field, vocab_size) for field in SCORES if field.name not in absent]
    return pa.schema(fields)


def _field(field: pa.Field, vocab_size: int) -> pa.Field:
    if field.name == "sequence_digest":
        return field
    value = field.type.value_type
    if field.name in IDS and vocab_size <= 1 << 16:
        value = pa.uint16()
    elif field.name in ROUNDED:
        value = pa.float16()
    element = pa.field("element", value, nullable=False)  # a level less for each value
    kind = pa.large_list(element) if pa.types.is_large_list(field.type) else pa.list_(element)
    return pa.field(field.name, kind, nullable=False)


def _stored(table: pa.Table, field: pa.Field) -> Any:
    if field.name in ROUNDED:
        values = flat_values(table, field.name)
        if len(values) and values.min() < LOWEST:
            values = np.where(np.isneginf(values), values, np.maximum(values, LOWEST))
        lengths = list_lengths(table, field.name)
        return list_array(values.astype(np.float16), lengths, field.type)
    return _converted(table, field.name, field.type)


def _converted(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    """Return a column with another type of value, the same one where that is its own."""
    if table.schema.field(name).type == kind:
        return table.column(name)
    values = flat_values(table, name)
    if values.dtype == np.float16:
        values = pc.take(_HALVES, pa.array(values.view(np.uint16))).to_numpy()
    values = values.astype(kind.value_type.to_pandas_dtype(), copy=False)
    return list_array(values, list_lengths(table, name), kind)
