"""Reads of a cache's shards: once while a shard is held, few, and only where a read pays.

Promises: bytes are verified whole, sha256 included, before a row of them is used. A row group alone
could not be: the pages' checksums leave the footer out. So shards are read whole, and only the row
groups that are needed are decoded.
"""

from collections import OrderedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.shards.scores import rows_of_shard
from pipeline.store.storage import Storage
from schemas.records.shards import Shard

HELD_BYTES = 256 << 20
"""Bytes of shards, as they are stored, that a cache holds at most."""

LEAST_TOKENS = 64
"""Tokens that the teacher must be spared by a read, however small the shard: a request to an object
store takes some tens of milliseconds, in which a teacher of 32B on one GPU reads more."""

BYTES_PER_TOKEN = 1 << 16
"""Bytes that are fetched and hashed at most to spare the teacher a token more: 0.65 ms at 100 MB/s,
in which a dense teacher of 100B on one GPU reads about a token, and a smaller one reads more."""

ROWS_PER_ROW = 2
"""Rows of shards that a call reads for each row of its round at most: as many as it writes, and as
many again. So a call costs the same however many shards the root has."""


class ShardReads:
    """What one process reads of one scorer's shards."""

    def __init__(
        self,
        storage: Storage,
        scorer: str,
        *,
        held_bytes: int = HELD_BYTES,
        most_rows: int | None = None,
    ) -> None:
        """Hold nothing yet.

        Args:
            storage: the store.
            scorer: key of the scorer whose shards they are.
            held_bytes: bytes to hold at most.
            most_rows: rows that shards which are found to pay may have in all; None for no bound.
        """
        self._storage, self._scorer, self._limit = storage, scorer, held_bytes
        self._rows_left = most_rows
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._passed_over: dict[str, int] = {}

    def pays(self, shard: Shard, tokens: int) -> bool:
        """Return whether to read a shard that spares the teacher some tokens.

        Tokens for which it was left alone before count too. So over all calls, the teacher reads
        less for what was left alone than the shard's one read would have cost.
        """
        if shard.key in self._held:
            return True
        if self._rows_left is not None and shard.rows > self._rows_left:
            return False
        spared = self._passed_over.pop(shard.key, 0) + tokens
        pays = spared >= least_tokens(shard)
        if not pays:
            self._passed_over[shard.key] = spared
        elif self._rows_left is not None:
            self._rows_left -= shard.rows
        return pays

    def rows(self, shard: Shard, rows: NDArray[np.int64]) -> pa.Table:
        """Return some rows of a shard, in their order.

        Raises:
            DataError: the object is missing, corrupt, misshapen, or has no such row.
            IdentityError: it holds the scores of another scorer.
        """
        data = self._held.get(shard.key)
        if data is None:
            data = self._storage.read_shard(shard)
        self.keep(shard.key, data)
        return rows_of_shard(self._storage, shard, data, scorer=self._scorer, rows=rows)

    def keep(self, key: str, data: bytes) -> None:
        """Hold a shard's verified bytes as the one that was used last; let go of the oldest."""
        self._bytes += len(data) - len(self._held.pop(key, b""))
        self._held[key] = data
        while self._bytes > self._limit:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= len(oldest)


def least_tokens(shard: Shard) -> int:
    """Return how many tokens a read of a shard must spare the teacher."""
    return LEAST_TOKENS + shard.bytes // BYTES_PER_TOKEN
