"""The right to write to a root: any number of writers, or one where create-only is ignored."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.store.records import find_record
from pipeline.store.storage import Storage
from schemas.errors import ConflictError, StorageError
from schemas.keys import WRITER, probe_key
from schemas.records.record import Record

WRITER_KEY = WRITER


BEAT_S = 5.0


STALE_S = 30.0


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
    key = probe_key(uuid.uuid4().hex)
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
