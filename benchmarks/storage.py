"""`storage`: shards published and read per second, and whether publishing slows with history.

Runs in a temporary folder, or on the S3 server that `AWS_ENDPOINT_URL` names: bucket
`opd-benchmarks`, a prefix of its own that is removed afterwards.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.kit.measure import (
    Case,
    Result,
    Spread,
    Timing,
    alternate,
    cost_ratio,
    cpu_seconds,
    headline,
    spread,
    timed,
    units_per_wall_s,
    wall_seconds,
)
from pipeline.store.commit import content_shard, publish, read_commit
from pipeline.store.storage import Storage
from schemas.keys import commit_key

BUCKET = "opd-benchmarks"
SHARD_BYTES = 1 << 20
HISTORY, SAMPLE = 300, 10
"""Units of the longest folder, and how many of them its first and last costs are taken from."""


class Folder:
    """A stage's folder that grows by one published unit a call."""

    def __init__(self, storage: Storage, name: str, *, size: int, seed: int) -> None:
        """Name the folder; every unit has other bytes of one size."""
        self._storage, self._name, self._size = storage, name, size
        self._random = np.random.default_rng(seed)
        self.units = 0

    def publish(self) -> int:
        """Publish the next unit as a stage does: look for its commit, PUT, commit."""
        data, unit = self._random.bytes(self._size), f"u{self.units:05d}"
        if self._storage.exists(commit_key(self._name, unit)):
            raise RuntimeError(f"unit {unit} of a new folder is there already")
        shard = content_shard("data", data, rows=1, tokens=1)
        publish(self._storage, self._name, unit, shard=shard, data=data, fingerprint="bench")
        self.units += 1
        return 1

    def read(self, index: int) -> int:
        """Read a unit's commit and its shard, verified."""
        commit = read_commit(self._storage, self._name, f"u{index:05d}", fingerprint="bench")
        return len(self._storage.read_shard(commit.shard)) // self._size


def run(*, quick: bool, seed: int) -> Result:
    """Measure one store; the figures are wall rates and the growth of CPU cost per unit."""
    units, history = (20, 40) if quick else (100, HISTORY)
    with open_root() as (kind, storage):
        rates = _rates(storage, units, seed=seed)
        growth = _growth(storage, history, seed=seed)
    case: Case = {"case": kind, "shard_bytes": SHARD_BYTES, "units": units, **rates, **growth}
    names = ("publish_per_s", "read_per_s", "growth_ratio", "growth_ratio_wall")
    return Result({name: headline([case], name, max) for name in names}, [case])


def _rates(storage: Storage, units: int, *, seed: int) -> Case:
    folder = Folder(storage, "rates", size=SHARD_BYTES, seed=seed)
    folder.publish()
    written = [timed(_several(folder.publish, units // 5)) for _ in range(5)]
    reads = iter(range(1, folder.units))
    read = [timed(_several(lambda: folder.read(next(reads)), units // 5)) for _ in range(5)]
    return {
        "publish_per_s": units_per_wall_s(written),
        "read_per_s": units_per_wall_s(read),
        "publish_cpu_s": _per_unit(written),
        "read_cpu_s": _per_unit(read),
    }


def _growth(storage: Storage, history: int, *, seed: int) -> Case:
    """Compare units of an empty folder with those that end a long one, in turn."""
    old = Folder(storage, "old", size=1024, seed=seed + 1)
    for _ in range(history - SAMPLE):
        old.publish()
    new = Folder(storage, "new", size=1024, seed=seed + 2)
    timings = alternate({"last": old.publish, "first": new.publish}, SAMPLE)
    first, last = timings["first"], timings["last"]
    wall = [b.wall_s / a.wall_s for a, b in zip(first, last, strict=True)]
    return {
        "history": history,
        "growth_ratio": cost_ratio(last, first),
        "growth_ratio_wall": spread(wall),
        "first_unit_cpu_s": cpu_seconds(first),
        "last_unit_cpu_s": cpu_seconds(last),
        "first_unit_wall_s": wall_seconds(first),
        "last_unit_wall_s": wall_seconds(last),
    }


def _per_unit(timings: list[Timing]) -> Spread:
    return spread([t.cost_s for t in timings])


def _several(action: Callable[[], int], count: int) -> Callable[[], int]:
    return lambda: sum(action() for _ in range(count))


@contextmanager
def open_root() -> Iterator[tuple[str, Storage]]:
    """Yield the kind of store and a fresh root on it, removed at the end."""
    if not os.environ.get("AWS_ENDPOINT_URL"):
        with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
            yield "file", Storage(name)
        return
    import fsspec

    filesystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    if not filesystem.exists(BUCKET):
        filesystem.mkdir(BUCKET)
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    try:
        yield "s3", Storage(f"s3://{root}")
    finally:
        filesystem.rm(root, recursive=True)
