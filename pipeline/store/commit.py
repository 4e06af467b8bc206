"""The commit rule: complete bytes, one PUT under the content's digest, one create-only commit.

Promises: a unit has at most one commit for ever; readers see only what a commit names; the second
writer of a unit loses quietly after looking at the winner. Must not: publish on close or exit.
"""

import hashlib
import uuid

from pipeline.store.records import check_fingerprint, read_record
from pipeline.store.storage import Storage
from pipeline.store.sweeps import settle
from schemas.keys import commit_key, commits_folder, shard_key, stem
from schemas.records.shards import Commit, Shard


def content_shard(folder: str, data: bytes, *, rows: int, tokens: int) -> Shard:
    """Return the name and digest under which a Parquet shard is stored."""
    digest = hashlib.sha256(data).hexdigest()
    return Shard(
        key=shard_key(folder, digest), sha256=digest, bytes=len(data), rows=rows, tokens=tokens
    )


def publish(
    storage: Storage, folder: str, unit: str, *, shard: Shard, data: bytes, fingerprint: str
) -> Commit:
    """Make a unit's shard visible, or find that another writer has; return the commit that stands.

    Args:
        storage: the store.
        folder: the stage's folder; its commits are in `<folder>/commits/`.
        unit: name of the unit.
        shard: name and digest of the shard.
        data: the shard's bytes.
        fingerprint: digest of the work; every writer of the unit must agree on it.

    Raises:
        IdentityError: the commit that stands was made by other work.
    """
    commit = Commit(unit=unit, shard=shard, fingerprint=fingerprint, attempt=uuid.uuid4().hex)
    storage.put(shard.key, data)
    key = commit_key(folder, unit)
    if not storage.create(key, commit.to_bytes()):
        commit = read_record(storage, key, Commit)
        check_fingerprint(storage, key, commit.fingerprint, fingerprint)
    if commit.shard.key == shard.key:
        settle(storage, [shard.key], lambda gone: storage.put(gone, data))
    return commit


def committed_units(storage: Storage, folder: str) -> set[str]:
    """Return the units of a stage that have a commit, by one listing."""
    return {stem(name) for name in commit_names(storage, folder)}


def commit_names(storage: Storage, folder: str) -> list[str]:
    """Return the names of the commits in a folder, sorted; what else lies there is no commit."""
    found = storage.names(commits_folder(folder))
    return sorted(name for name in found if stem(name) != name)


def read_commit(storage: Storage, folder: str, unit: str, *, fingerprint: str) -> Commit:
    """Return a unit's commit.

    Raises:
        DataError: it is missing or damaged.
        IdentityError: it was made by other work.
    """
    key = commit_key(folder, unit)
    commit = read_record(storage, key, Commit)
    check_fingerprint(storage, key, commit.fingerprint, fingerprint)
    return commit
