"""Shards, and the commits that make them visible."""

from schemas.records.record import Record, Versioned


class Shard(Record):
    """A content-addressed data object: where it is and what it holds."""

    key: str
    sha256: str
    bytes: int
    rows: int
    tokens: int


class Commit(Versioned):
    """The object that makes one unit's shard visible; created once, never changed."""

    unit: str
    shard: Shard
    fingerprint: str
    attempt: str


class LeaseRecord(Record):
    """Who works on a unit."""

    owner: str
    machine: str
    process: int
    """Number of the process on its machine."""


class UnitShard(Record):
    """One unit of a finished stage and its shard."""

    unit: str
    shard: Shard
