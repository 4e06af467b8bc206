"""The commit rule: complete bytes, one PUT under the content's digest, one create-only commit.

Promises: a unit has at most one commit for ever; readers see only what a commit names; the second
writer of a unit loses quietly after looking at the winner. Must not: publish on close or exit.
"""

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pipeline.storage import Storage
from schemas.errors import ConflictError, DataError, IdentityError, StorageError
from schemas.manifest import Commit, Record, Shard

R = TypeVar("R", bound=Record)

WRITER_KEY = "writer.json"
BEAT_S = 5.0
STALE_S = 30.0


def content_shard(folder: str, data: bytes, *, rows: int, tokens: int) -> Shard:
    """Return the name and digest under which a Parquet shard is stored."""
    digest = hashlib.sha256(data).hexdigest()
    key = f"{folder}/{digest}.parquet"
    return Shard(key=key, sha256=digest, bytes=len(data), rows=rows, tokens=tokens)


def commit_key(folder: str, unit: str) -> str:
    """Return the key of a unit's commit."""
    return f"{folder}/commits/{unit}.json"


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
    if storage.create(key, commit.to_bytes()):
        return commit
    winner = read_record(storage, key, Commit)
    check_fingerprint(storage, key, winner.fingerprint, fingerprint)
    return winner


def committed_units(storage: Storage, folder: str) -> set[str]:
    """Return the units of a stage that have a commit, by one listing."""
    return {name.removesuffix(".json") for name in storage.names(f"{folder}/commits")}


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


def read_record(storage: Storage, key: str, kind: type[R]) -> R:
    """Return a record that must be there.

    Raises:
        DataError: it is missing or damaged.
    """
    record = find_record(storage, key, kind)
    if record is None:
        raise DataError(f"{storage.url(key)} is missing: run the stage that makes it first")
    return record


def find_record(storage: Storage, key: str, kind: type[R]) -> R | None:
    """Return a record, or None where there is none.

    Raises:
        DataError: it is damaged.
    """
    data = storage.get(key)
    return None if data is None else kind.from_bytes(data, where=storage.url(key))


def create_record(storage: Storage, key: str, record: R) -> R:
    """Create a record, or return the one that stands when another writer was first."""
    if storage.create(key, record.to_bytes()):
        return record
    return read_record(storage, key, type(record))


def check_fingerprint(storage: Storage, key: str, found: str, expected: str) -> None:
    """Make sure that a stored object belongs to this work.

    Raises:
        IdentityError: it does not.
    """
    if found != expected:
        raise IdentityError(
            f"{storage.url(key)} was made by other work: found fingerprint {found}, expected "
            f"{expected}. The configuration, the prompts or the model changed since; undo that, "
            "or start a new run under another run.name"
        )


@contextmanager
def writer(storage: Storage) -> Iterator[None]:
    """Hold the right to write to a root for the length of a block.

    The store is probed: one key is created twice, and the second must fail. A store that honours
    create-only takes any number of writers. One that ignores it takes a single one, kept apart by
    a beating lock object.

    Raises:
        ConflictError: the store ignores create-only and another writer is alive.
        StorageError: the store cannot be written.
    """
    if honours_create(storage):
        yield
        return
    attempt, stop = uuid.uuid4().hex, threading.Event()
    _take_lock(storage, attempt)
    beat = threading.Thread(target=_beat, args=(storage, attempt, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        held = find_record(storage, WRITER_KEY, _Lock)
        if held is not None and held.owner == attempt:
            storage.delete(WRITER_KEY)


def honours_create(storage: Storage) -> bool:
    """Return whether the store refuses to create a key a second time."""
    key = f"probe/{uuid.uuid4().hex}"
    try:
        storage.create(key, b"first")
        return not storage.create(key, b"second")
    finally:
        storage.delete(key)


class _Lock(Record):
    owner: str
    time_s: float


def _take_lock(storage: Storage, attempt: str) -> None:
    held = find_record(storage, WRITER_KEY, _Lock)
    mine = _Lock(owner=attempt, time_s=time.time())
    if held is None or mine.time_s - held.time_s > STALE_S:
        storage.put(WRITER_KEY, mine.to_bytes())
        time.sleep(1.0)  # a rival that looked at the same moment has written by now
        held = find_record(storage, WRITER_KEY, _Lock)
    if held is None or held.owner != attempt:
        raise ConflictError(
            f"{storage.root} ignores create-only writes (If-None-Match), so it takes one writer "
            f"at a time, and {storage.url(WRITER_KEY)} says that another one is alive. Wait for it "
            f"to end ({STALE_S:.0f} s after a crash), or use a store that honours create-only"
        )


def _beat(storage: Storage, attempt: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(StorageError):  # the work itself meets the same fault and reports it
            storage.put(WRITER_KEY, _Lock(owner=attempt, time_s=time.time()).to_bytes())
