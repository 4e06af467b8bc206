"""Deletion beside writers: who deletes says so before looking for names, who names looks after it.

Promises: an object that a record names stays or is put again, however the steps of both sides
interleave; a clean-up that died stops nobody for long. A sweep is the deleting part of a clean-up;
docs/storage.md has the proof.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from pipeline.store import interrupts
from pipeline.store.records import READERS, find_record
from pipeline.store.storage import Storage
from schemas.errors import CapacityError, StorageError
from schemas.keys import commit_key, sweep_key
from schemas.records.scores import ScoreCommit
from schemas.records.shards import Commit
from schemas.records.sweeps import SweepRecord

POLL_S = 0.5
"""Seconds between two looks at a sweep that may delete what is waited for."""


def settle(storage: Storage, keys: Iterable[str], put_again: Callable[[str], object]) -> None:
    """Make sure that objects are there, after a record that names them was written.

    Args:
        storage: the store.
        keys: what the record names.
        put_again: writes one of them again.
    """
    named = list(keys)
    wait_for_sweep(storage, named)
    for key in named:
        if not storage.exists(key):
            put_again(key)


def wait_for_sweep(storage: Storage, keys: Iterable[str]) -> None:
    """Wait until no sweep that is at work may delete any of some keys."""
    named = list(keys)
    while (sweep := find_record(storage, sweep_key(), SweepRecord)) is not None:
        if not _covers(sweep, named) or _is_dead(storage, sweep):
            return
        interrupts.pause(POLL_S)


def forget_lost(
    storage: Storage, folder: str, commits: Sequence[Commit | ScoreCommit]
) -> list[str]:
    """Delete those commits whose shard is not there; return their units.

    A writer that is killed just after its commit cannot put again what a clean-up deletes just
    then. For units that no manifest names yet: they are done anew.

    Args:
        storage: the store.
        folder: the stage's folder.
        commits: commits of other processes.
    """
    with ThreadPoolExecutor(READERS) as pool:
        there = pool.map(storage.exists, [commit.shard.key for commit in commits])
        lost = [
            commit.unit for commit, is_there in zip(commits, there, strict=True) if not is_there
        ]
    for unit in lost:
        storage.delete(commit_key(folder, unit))
    return lost


class Sweep:
    """The right to delete some keys, from before their names are looked for until they are gone."""

    def __init__(self, storage: Storage, keys: Iterable[str]) -> None:
        """Name what may go; one key that ends with `/` stands for all below it."""
        self._storage, self._lease_s = storage, storage.lease_s
        dead_after_s = 2 * storage.lease_s + storage.retry_s  # a late request ends before it
        self._mine = SweepRecord(
            sweep=uuid.uuid4().hex, dead_after_s=dead_after_s, keys=tuple(keys)
        )
        self._data = self._mine.to_bytes()
        self._stop, self._renewed_s = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Say what may go.

        Raises:
            StorageError: another clean-up deletes now.
        """
        self._renewed_s = time.monotonic()
        storage, key = self._storage, sweep_key()
        if not storage.create(key, self._data):
            other, version = find_record(storage, key, SweepRecord), storage.version(key)
            free = other is None or _is_dead(storage, other)
            taken = (
                storage.create(key, self._data)
                if version is None
                else free and storage.replace(key, self._data, version)
            )
            if not taken:
                raise StorageError(
                    f"{storage.url(key)} says that another `opd cache gc` deletes now. Run the "
                    "same command again when it is done; if it was killed, in "
                    f"{self._mine.dead_after_s:.0f} s"
                )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say that nothing goes any more."""
        with interrupts.giving_back(error):
            self._stop.set()
            self._thread.join()
            with suppress(StorageError):  # it is dead soon
                if self._storage.get(sweep_key()) == self._data:
                    self._storage.delete(sweep_key())

    def delete(self, key: str) -> None:
        """Remove an object of those that were named.

        Raises:
            StorageError: this process was silent for so long that nobody waits for it any more.
        """
        if time.monotonic() - self._renewed_s > self._lease_s:
            raise StorageError(
                f"the right to delete, {self._storage.url(sweep_key())}, could not be renewed for "
                f"{self._lease_s:.0f} s. Run the same command again; what is deleted is deleted"
            )
        self._storage.delete(key)

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            # the deletions themselves meet the same fault and report it
            with suppress(StorageError, CapacityError, interrupts.Interrupted):
                begun_s, version = time.monotonic(), self._storage.version(sweep_key())
                if version is None or self._storage.get(sweep_key()) != self._data:
                    return  # taken over while this process was asleep
                if self._storage.replace(sweep_key(), self._data, version):
                    self._renewed_s = begun_s


def _covers(sweep: SweepRecord, keys: list[str]) -> bool:
    """Return whether a sweep may delete any of some keys."""
    folders = tuple(key for key in sweep.keys if key.endswith("/"))
    named = set(sweep.keys)
    return any(key in named or (bool(folders) and key.startswith(folders)) for key in keys)


def _is_dead(storage: Storage, sweep: SweepRecord) -> bool:
    version = storage.version(sweep_key())
    return version is not None and version.age_s > sweep.dead_after_s
