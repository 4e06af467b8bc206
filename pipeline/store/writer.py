"""The right to write to a root: its store refuses a second creation, or one process is alone."""

import uuid
from contextlib import suppress

from pipeline.store.storage import Storage
from schemas.errors import StorageError
from schemas.keys import PROBES, probe_key

DEAD_PROBE_S = 86400.0
"""Age of a probe whose process cannot live any more; a probe takes two requests."""

PROBED: set[str] = set()
"""Roots whose store this process has seen refuse a second creation."""


def require_safe_writes(storage: Storage) -> None:
    """Make sure that processes which write to a root cannot overwrite each other's commits.

    The store is probed by each process, once for a root. A run that has begun there is no proof: it
    may have begun with `storage.single_writer` or under an older opd, and a root may be copied to
    another store with all its records. Where the configuration says that one process writes at a
    time, nothing is asked.

    Raises:
        StorageError: the store ignores create-only writes, or cannot be written.
    """
    if storage.single_writer or storage.root in PROBED:
        return
    if not honours_create(storage):
        raise StorageError(
            f"{storage.root} ignores create-only writes (If-None-Match), so two processes could "
            "overwrite each other's commits. Use a store that honours them, which a newer version "
            "of this one may do; or set storage.single_writer = true, and make sure that only one "
            "opd process writes to this root at a time"
        )
    _sweep_probes(storage)
    PROBED.add(storage.root)


def honours_create(storage: Storage) -> bool:
    """Return whether the store refuses to create a key a second time."""
    key = probe_key(uuid.uuid4().hex)
    try:
        storage.create(key, b"first")
        return not storage.create(key, b"second")
    finally:
        storage.delete(key)


def _sweep_probes(storage: Storage) -> None:
    """Delete the probes of processes that were killed before they could."""
    with suppress(StorageError):  # they cost nothing but room
        for name in storage.names(PROBES):
            version = storage.version(probe_key(name))
            if version is not None and version.age_s > DEAD_PROBE_S:
                storage.delete(probe_key(name))
