"""Reading of rollout shards, verified."""

import pyarrow as pa

from pipeline.shards.parquet import read_table
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.records.shards import Shard
from schemas.tables import check_rollout


def read_rollout(storage: Storage, shard: Shard) -> pa.Table:
    """Return the rows of a rollout shard.

    Raises:
        DataError: the object is missing, corrupt or misshapen.
    """
    where = storage.url(shard.key)
    table, _ = read_table(storage.read_shard(shard), where=where)
    check_rollout(table, where=where)
    if table.num_rows != shard.rows:
        raise DataError(f"{where} has {table.num_rows} rows, its commit says {shard.rows}")
    return table
