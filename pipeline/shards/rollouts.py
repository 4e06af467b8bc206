"""Rollout shards: tables as bytes, and back verified."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.shards.parquet import read_table, write_table
from pipeline.store.storage import Storage
from schemas.columns import check_lengths, flat_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import padded, row_sums
from schemas.records.shards import Shard
from schemas.tables import (
    ROLLOUT,
    check_logprobs,
    check_rollout,
    check_table,
)

OWN_SAMPLE = ("student_sample_ids", "student_sample_logprobs", "student_sample_count")
"""Columns that came later: a file has them only where they hold something. The last is there where
tokens have numbers of ids of their own."""


def write_rollout(table: pa.Table, metadata: dict[str, Any], *, where: str) -> bytes:
    """Return a rollout table, checked here, as the bytes of a shard.

    Columns that came later are left out where they hold nothing, so that shards without them stay
    what they were.

    Raises:
        DataError: it is misshapen.
    """
    _check(table, where)
    empty = [name for name in OWN_SAMPLE if table.column(name).null_count == table.num_rows]
    return write_table(table.drop_columns(empty), metadata, token_column="response_ids")


def read_rollout(
    storage: Storage, shard: Shard, *, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the rows of a rollout shard.

    Args:
        storage: the store.
        shard: the object, which is read and verified whole.
        columns: the only ones to decode; their types are checked, their values are not.

    Raises:
        DataError: the object is missing, corrupt or misshapen.
    """
    where = storage.url(shard.key)
    names = None if columns is None else list(columns)
    table, _ = read_table(storage.read_shard(shard), where=where, columns=names, rows=shard.rows)
    if names is None:
        table = _with_own_sample(table)
        _check(table, where)
    else:
        check_table(table, pa.schema([ROLLOUT.field(name) for name in names]), where=where)
    return table


def _check(table: pa.Table, where: str) -> None:
    """Refuse a table that is misshapen, or has own samples of other widths or with an id twice."""
    check_rollout(table, where=where)
    ids, logprobs, count = OWN_SAMPLE
    nulls = {name: table.column(name).null_count for name in OWN_SAMPLE}
    if set(nulls.values()) == {table.num_rows}:
        return
    if nulls[count] == table.num_rows:
        nulls[count] = 0
    for name, found in nulls.items():
        if found:
            words = f"{found} nulls in {table.num_rows} rows"
            raise DataError(f"{where}: column {name!r} holds {words}, where a sample has none")
    counts_T, values_R = _own_counts(table, where)
    for name in (ids, logprobs):
        check_lengths(table, name, values_R, where=where)
    check_logprobs(table, logprobs, where=where)
    named = flat_values(table, ids)
    if named.min(initial=0) < 0:
        raise DataError(f"{where}: {ids!r} holds {named.min()}, which is no id")
    found_TN = np.sort(padded(named, counts_T, fill=-1), axis=1)
    if ((found_TN[:, 1:] == found_TN[:, :-1]) & (found_TN[:, 1:] >= 0)).any():
        raise DataError(f"{where}: {ids!r} names an id twice at a token")


def _own_counts(table: pa.Table, where: str) -> tuple[Any, Any]:
    """Return how many ids of its own sample each token has, and each row."""
    ids, _, count = OWN_SAMPLE
    tokens = list_lengths(table, "response_ids")
    if table.column(count).null_count:
        width = max(int(list_lengths(table, ids)[0] // tokens[0]), 1)
        return np.full(tokens.sum(), width), tokens * width
    check_lengths(table, count, tokens, where=where)
    counts_T = flat_values(table, count)
    if counts_T.min(initial=1) < 1:
        raise DataError(f"{where}: {count!r} holds {counts_T.min()}, where each token has an id")
    return counts_T, row_sums(counts_T, tokens)


def _with_own_sample(table: pa.Table) -> pa.Table:
    """Return a table with the columns that came later, null where its file does not have them."""
    for name in OWN_SAMPLE:
        if name not in table.column_names:
            nulls = pa.nulls(table.num_rows, ROLLOUT.field(name).type)
            table = table.append_column(ROLLOUT.field(name), nulls)
    return table.select(
        [*(n for n in table.column_names if n not in ROLLOUT.names), *ROLLOUT.names]
    )
