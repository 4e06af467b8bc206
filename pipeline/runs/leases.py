"""Leases on units of work, so that workers that join and die at will seldom do a unit twice.

A lease is an object that is created to take the unit, updated on condition to renew or steal it,
and deleted at the end; its age is told by the store's own clock. Promises: a unit whose holder is
gone becomes free, at once where the holder was a process of this machine, and in time where it
lives but gets nowhere. Must not: be needed for
safety, which is the commit's alone.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.store import interrupts
from pipeline.store.storage import Storage
from schemas.errors import CapacityError, DataError, StorageError
from schemas.keys import lease_key, leases_folder, stem
from schemas.records.shards import LeaseRecord

MOST_HOLDERS = 16
"""Leases that are read to tell who is at work."""


@dataclass(frozen=True)
class Holder:
    """Who holds a unit."""

    unit: str
    host: str
    process: int
    age_s: float
    """Seconds since the lease was renewed, by the store's clock."""
    gone: bool
    """Whether its process has died, or let the lease run out."""


@contextmanager
def at_work(storage: Storage, folder: str, unit: str) -> Iterator[None]:
    """Show others by a lease that this process works on something; it keeps nobody from it."""
    with Leases(storage, folder) as leases:
        with suppress(StorageError, CapacityError):  # the work itself meets the fault
            leases.take(unit)
        yield


def holders(storage: Storage, folder: str) -> list[Holder]:
    """Return who works on a stage's units, at most `MOST_HOLDERS` of them."""
    names = sorted(storage.names(leases_folder(folder)))[:MOST_HOLDERS]
    found = [_holder(storage, lease_key(folder, stem(name)), stem(name)) for name in names]
    return [holder for holder in found if holder is not None]


def _holder(storage: Storage, key: str, unit: str) -> Holder | None:
    version, data = storage.version(key), storage.get(key)
    if version is None or data is None:
        return None  # given back meanwhile
    try:
        lease = LeaseRecord.from_bytes(data, where=storage.url(key))
    except DataError:  # of no use to anybody
        return None
    dead = lease.machine == machine() and not is_alive(lease.process)
    return Holder(
        unit=unit,
        host=lease.machine.partition("/")[0],
        process=lease.process,
        age_s=round(version.age_s, 1),
        gone=dead or version.age_s > storage.lease_s,
    )


class Leases:
    """The leases that this process holds on units of one stage, renewed in the background."""

    def __init__(self, storage: Storage, folder: str) -> None:
        """Name the stage's folder; nothing is taken yet."""
        self._storage, self._stage = storage, folder
        self._ttl_s, self._stall_s = storage.lease_s, storage.stall_s
        self._mine = LeaseRecord(owner=uuid.uuid4().hex, machine=machine(), process=os.getpid())
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Begin to renew what is held."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give back what is held, for others need not wait."""
        with interrupts.giving_back(error):
            self._stop.set()
            self._thread.join()
            for unit in list(self._held):
                with suppress(StorageError):
                    self.release(unit)

    def take(self, unit: str) -> bool:
        """Return whether the unit is ours now: it was free, or its holder is gone."""
        key = self._key(unit)
        taken = self._storage.create(key, self._mine.to_bytes()) or self._steal(key)
        if taken:
            self._held.add(unit)
        return taken

    def release(self, unit: str) -> None:
        """Give a unit back."""
        self._held.discard(unit)
        if self._storage.get(self._key(unit)) == self._mine.to_bytes():
            self._storage.delete(self._key(unit))

    def sweep(self) -> None:
        """Delete what killed processes left; for a stage whose units are all committed."""
        leases = leases_folder(self._stage)
        for name in self._storage.names(leases):
            self._storage.delete(f"{leases}/{name}")

    def _steal(self, key: str) -> bool:
        version = self._storage.version(key)
        if version is None:
            return False
        free = version.age_s > self._ttl_s or self._is_dead(key)
        return free and self._storage.replace(key, self._mine.to_bytes(), version)

    def _is_dead(self, key: str) -> bool:
        data = self._storage.get(key)
        if data is None:
            return False
        try:
            holder = LeaseRecord.from_bytes(data, where=self._storage.url(key))
        except DataError:  # of no use to anybody
            return True
        return holder.machine == self._mine.machine and not is_alive(holder.process)

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl_s / 3):
            if interrupts.silence_s() > self._stall_s:
                continue  # this process hangs, and nobody should wait for it
            for unit in list(self._held):
                # the work itself meets the same fault and reports it
                with suppress(StorageError, CapacityError, interrupts.Interrupted):
                    self._renew_one(unit)

    def _renew_one(self, unit: str) -> None:
        key = self._key(unit)
        version = self._storage.version(key)
        if version is None or self._storage.get(key) != self._mine.to_bytes():
            self._held.discard(unit)  # stolen while this process was asleep
        else:
            self._storage.replace(key, self._mine.to_bytes(), version)

    def _key(self, unit: str) -> str:
        return lease_key(self._stage, unit)


def machine() -> str:
    """Return a name of this machine, this start of it and this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
