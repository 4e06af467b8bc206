"""Reading of rollout shards, verified."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.shards.parquet import read_table
from pipeline.store.storage import Storage
from schemas.records.shards import Shard
from schemas.tables import ROLLOUT, check_rollout, check_table


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
        check_rollout(table, where=where)
    else:
        check_table(table, pa.schema([ROLLOUT.field(name) for name in names]), where=where)
    return table
