"""`index`: looking sequences up among ten million, and whether history slows that or costs memory.

Every look-up opens the index anew in a process of its own, as `opd score` does, and asks for 4,096
sequences, half of which are known. The segments are written as compaction leaves them.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.kit.measure import Case, Result, Spread, Timing, in_child, peak_bytes, spread, timed
from pipeline.cache.index.entries import ENTRY, SHARD, unique_entries
from pipeline.cache.index.index import Index
from pipeline.cache.index.segments import write_segment
from pipeline.store.storage import Storage
from schemas.keys import index_folder, index_state_key
from schemas.records.index import IndexRun, IndexState

ASKED = 4096
SEQUENCES, QUICK_SEQUENCES = 10_000_000, 300_000
SHORT = 100
"""How many times shorter the history is that the long one is compared with."""
UNIT_ROWS = 4096
LEVELS = (0.01, 0.09, 0.9)
"""Shares of the sequences in the segment of each level."""


class CountingStorage(Storage):
    """A store that counts the objects that are read."""

    def __init__(self, root: str) -> None:
        """Count from nothing."""
        super().__init__(root)
        self.read: Counter[str] = Counter()

    def get(self, key: str) -> bytes | None:
        """Count and return an object."""
        self.read[key] += 1
        return super().get(key)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes] | None:
        """Count the objects and return their pieces."""
        self.read.update({key for key, _, _ in ranges})
        return super().read_ranges(ranges)


def run(*, quick: bool, seed: int) -> Result:
    """Measure a long history and one that is a hundred times shorter."""
    sequences = QUICK_SEQUENCES if quick else SEQUENCES
    with tempfile.TemporaryDirectory() as folder:
        short, long = (
            _case(Path(folder) / str(size), size, seed=seed, repeats=3 if quick else 7)
            for size in (sequences // SHORT, sequences)
        )
    figures = {
        "open_s": _median(long, "open_s"),
        "lookup_s": _median(long, "lookup_s"),
        "lookup_memory_mb": _median(long, "memory_mb"),
        "objects_read": _median(long, "objects_read"),
        "lookup_growth": _median(long, "lookup_s") / _median(short, "lookup_s"),
    }
    return Result(figures, [short, long])


def build(root: Path, sequences: int, seed: int) -> None:
    """Write an index of random sequences, and digests to ask for: half of them are in it."""
    storage, folder = Storage(str(root)), index_folder("bench")
    random = np.random.default_rng(seed)
    segments: list[IndexRun | None] = []
    keys = []
    for share in LEVELS:
        rows = max(1, int(sequences * share))
        entries = np.empty(rows, dtype=ENTRY)
        entries["key"] = random.integers(0, 2**64, rows, dtype=np.uint64)
        keys.append(entries["key"].copy())
        entries["shard"], entries["row"] = np.divmod(np.arange(rows), UNIT_ROWS)
        table = np.zeros(rows // UNIT_ROWS + 1, dtype=SHARD)
        table["sha256"], table["rows"] = b"ab" * 32, UNIT_ROWS
        segments.append(write_segment(storage, folder, unique_entries(entries), table))
    storage.create(
        index_state_key(folder, 1), IndexState(number=1, runs=tuple(segments)).to_bytes()
    )
    asked = random.choice(np.concatenate(keys), ASKED // 2, replace=False).tolist()
    asked += random.integers(0, 2**64, ASKED // 2, dtype=np.uint64).tolist()
    (root / "asked.json").write_text(json.dumps([f"{key:016x}{0:016x}" for key in asked]))


def look_up(root: Path) -> tuple[Timing, Timing, int, int]:
    """Return what opening and one look-up took, bytes of memory for it, and objects read."""
    digests = json.loads((root / "asked.json").read_text())
    storage = CountingStorage(str(root))
    index = Index(storage, "bench")
    before = peak_bytes()

    def refresh() -> int:
        index.refresh()
        return 1

    opened = timed(refresh)
    looked = timed(lambda: int((index.lookup(digests).shard >= 0).sum()))
    if looked.units != ASKED // 2:
        raise RuntimeError(f"{looked.units} sequences were found, expected {ASKED // 2}")
    return opened, looked, max(1, peak_bytes() - before), len(storage.read)


def _case(root: Path, sequences: int, *, seed: int, repeats: int) -> Case:
    in_child("benchmarks.index", build, root, sequences, seed)
    calls = [in_child("benchmarks.index", look_up, root) for _ in range(repeats)]
    return {
        "case": f"{sequences:,} sequences",
        "asked": ASKED,
        "open_s": spread([opened.wall_s for opened, _, _, _ in calls]),
        "lookup_s": spread([looked.wall_s for _, looked, _, _ in calls]),
        "lookup_cpu_s": spread([looked.cpu_s for _, looked, _, _ in calls]),
        "memory_mb": spread([memory / 2**20 for _, _, memory, _ in calls]),
        "objects_read": spread([float(objects) for _, _, _, objects in calls]),
    }


def _median(case: Case, name: str) -> float:
    value = case[name]
    if not isinstance(value, Spread):
        raise TypeError(name)
    return value.median
