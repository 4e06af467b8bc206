"""Rollout shards: tables as bytes, and back verified."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.shards.parquet import read_table, write_table
from pipeline.store.storage import Storage
from schemas.columns import check_lengths, flat_values, list_lengths
from schemas.errors import DataError
from schemas.records.shards import Shard
from schemas.tables import (
    ROLLOUT,
    check_logprobs,
    check_rollout,
    check_table,
)

OWN_SAMPLE = ("student_sample_ids", "student_sample_logprobs")
"""Columns that came later: a file has them only where they hold something."""


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
    nulls = {name: table.column(name).null_count for name in OWN_SAMPLE}
    if set(nulls.values()) == {table.num_rows}:
        return
    for name, count in nulls.items():
        if count:
            found = f"{count} nulls in {table.num_rows} rows"
            raise DataError(f"{where}: column {name!r} holds {found}, where a sample has none")
    tokens = list_lengths(table, "response_ids")
    width = max(int(list_lengths(table, OWN_SAMPLE[0])[0] // tokens[0]), 1)
    for name in OWN_SAMPLE:
        check_lengths(table, name, tokens * width, where=where)
    check_logprobs(table, OWN_SAMPLE[1], where=where)
    ids = np.sort(flat_values(table, OWN_SAMPLE[0]).reshape(-1, width), axis=1)
    if (ids[:, 1:] == ids[:, :-1]).any():
        raise DataError(f"{where}: {OWN_SAMPLE[0]!r} names an id twice at a token")


def _with_own_sample(table: pa.Table) -> pa.Table:
    """Return a table with the columns that came later, null where its file does not have them."""
    for name in OWN_SAMPLE:
        if name not in table.column_names:
            nulls = pa.nulls(table.num_rows, ROLLOUT.field(name).type)
            table = table.append_column(ROLLOUT.field(name), nulls)
    return table.select(
        [*(n for n in table.column_names if n not in ROLLOUT.names), *ROLLOUT.names]
    )
