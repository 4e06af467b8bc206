"""Shards, and the commits that make them visible."""

from schemas.forms import Count, FileName, Key, Mark, Sha256, Words
from schemas.keys import commits_folder, parent, shard_key, stem
from schemas.records.record import Record, Versioned


class Shard(Record):
    """A content-addressed data object: where it is and what it holds."""

    key: Key
    sha256: Sha256
    bytes: Count
    rows: Count
    tokens: Count

    def is_in(self, folder: str) -> bool:
        """Return whether the shard lies in a folder, under the name of its content."""
        return self.key == shard_key(folder, self.sha256)


class UnitCommit(Versioned):
    """What the commit of a unit says whatever the unit is of."""

    unit: FileName
    shard: Shard
    fingerprint: Mark

    def flaw(self) -> str | None:
        """Return how the commit contradicts itself: its shard is not named after its content."""
        return None if self.shard.is_in(parent(self.shard.key)) else not_content(self.shard)

    def misplaced(self, key: str) -> str | None:
        """Return the unit that it is of, where its key is of another one."""
        folder, _, name = key.rpartition("/")
        if stem(name) != self.unit or folder != commits_folder(parent(folder)):
            return f"the commit of unit {self.unit}"
        return None


class Commit(UnitCommit):
    """The object that makes one unit's shard visible; created once, never changed."""

    attempt: FileName


class LeaseRecord(Record):
    """Who works on a unit."""

    owner: Words
    machine: Words
    process: Count
    """Number of the process on its machine."""


class UnitShard(Record):
    """One unit of a finished stage and its shard."""

    unit: FileName
    shard: Shard


def not_content(shard: Shard) -> str:
    """Return in words that a shard lies under another name than that of its content."""
    return f"the shard {shard.key} is not one that is named after its content"
