"""Shards of rewards: written whole, read verified."""

from typing import Any

import pyarrow as pa

from pipeline.shards.parquet import read_table, write_table
from pipeline.store.storage import Storage
from schemas.records.shards import Shard
from schemas.rewardtable import REWARDS, check_rewards


def write_rewards(table: pa.Table, identity: dict[str, Any], *, where: str) -> bytes:
    """Return the bytes of a reward shard.

    Args:
        table: the rows.
        identity: the grader in words.
        where: what messages call it.

    Raises:
        DataError: the table is misshapen.
    """
    check_rewards(table, where=where)
    return write_table(table, {"grader": identity})


def read_rewards(storage: Storage, shard: Shard) -> pa.Table:
    """Return the rows of a reward shard.

    Raises:
        DataError: the object is missing, corrupt or misshapen.
    """
    where = storage.url(shard.key)
    table, _ = read_table(
        storage.read_shard(shard), where=where, columns=REWARDS.names, rows=shard.rows
    )
    check_rewards(table, where=where)
    return table
