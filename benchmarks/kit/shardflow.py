"""Score shards one after the other: memory of writer and reader over a thousand, speed from S3.

Memory is the largest resident size of a process of its own: what the hundredth shard left is
compared with what the last one did. Speed from S3 is that of the reading process alone.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pyarrow as pa

from benchmarks.kit.measure import (
    Case,
    in_child,
    peak_bytes,
    spread,
    timed,
    units_per_cpu_s,
    units_per_wall_s,
)
from benchmarks.storage import open_root
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.scores.columns import scores_of
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from pipeline.upkeep.inventory import cache_commits
from schemas.columns import list_lengths
from schemas.fingerprint import fingerprint
from schemas.records.scores import CacheCommit

SHARDS, FIRST = 1_000, 100
QUICK_SHARDS, QUICK_FIRST = 40, 10
SMALL_ROWS = 1
"""Rows of a small shard."""


def flow_case(scorer: Scorer, table: pa.Table, *, quick: bool) -> Case:
    """Return the memory of many small shards, and the speed of a large one from S3.

    Args:
        scorer: whose codec is used.
        table: scores, that are one large shard.
        quick: fewer shards and repeats.
    """
    memory = _memory(scorer, table, quick=quick)
    s3 = from_s3(scorer, table, repeats=2 if quick else 7)
    return {"case": f"{scorer.identity.codec} shards", **memory, **s3}


def _memory(scorer: Scorer, table: pa.Table, *, quick: bool) -> Case:
    """Return the growth of memory while many small shards are published, and read again.

    Args:
        scorer: whose codec is used.
        table: scores; the first rows of it are what every shard holds.
        quick: fewer shards.
    """
    shards, first = (QUICK_SHARDS, QUICK_FIRST) if quick else (SHARDS, FIRST)
    small = table.take(pa.array(range(SMALL_ROWS)))  # a slice would take the whole table along
    tokens = int(list_lengths(small, "token_logprob").sum())
    found: Case = {"shards": shards, "tokens_per_shard": tokens}
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as folder:
        name, root = "benchmarks.kit.shardflow", Path(folder)
        wrote = in_child(name, publish_many, root, scorer, small, shards=shards, first=first)
        read = in_child(name, read_many, root, scorer, first=first)
    for side, (early, late) in {"writer": wrote, "reader": read}.items():
        found[f"{side}_mb"] = spread([early / 2**20])
        found[f"{side}_growth_mb"] = spread([max(0, late - early) / 2**20])
    return found


def publish_many(
    root: Path, scorer: Scorer, table: pa.Table, *, shards: int, first: int
) -> tuple[int, int]:
    """Publish shards of new sequences; return the peak of memory after the first ones, and all."""
    cache = ScoreCache(Storage(str(root)), scorer.identity, print, held_bytes=0)
    return _peaks((partial(_publish, cache, table, number) for number in range(shards)), first)


def read_many(root: Path, scorer: Scorer, *, first: int) -> tuple[int, int]:
    """Read every shard of a cache; return the peak of memory after the first ones, and all."""
    storage = Storage(str(root))
    shards = [commit.shard for commit in cache_commits(storage, scorer.key)]
    reads = (partial(read_scores, storage, shard, scorer=scorer.key) for shard in shards)
    return _peaks(reads, first)


def from_s3(scorer: Scorer, table: pa.Table, *, repeats: int) -> Case:
    """Return how fast a shard becomes arrays from the S3 server that the environment names.

    Args:
        scorer: whose codec is used.
        table: scores, that are one large shard.
        repeats: times that the shard is read.
    """
    if not os.environ.get("AWS_ENDPOINT_URL"):
        return {"s3": "not measured: AWS_ENDPOINT_URL names no server"}
    tokens = int(list_lengths(table, "token_logprob").sum())
    with open_root() as (_, storage):
        commit = _publish(ScoreCache(storage, scorer.identity, print), table, 0)

        def read() -> int:
            scores_of(read_scores(storage, commit.shard, scorer=scorer.key))
            return tokens

        timings = [timed(read) for _ in range(repeats)]
    return {
        "s3": "measured",
        "s3_tokens": tokens,
        "s3_tokens_per_cpu_s": units_per_cpu_s(timings),
        "s3_tokens_per_wall_s": units_per_wall_s(timings),
    }


def _publish(cache: ScoreCache, table: pa.Table, number: int) -> CacheCommit:
    """Publish scores as those of sequences that no other number has."""
    digests = [f"{number:016x}{row:016x}" for row in range(table.num_rows)]
    index = table.column_names.index("sequence_digest")
    table = table.set_column(index, table.field(index), pa.array(digests))
    return cache.publish(fingerprint(digests), table, Origin("bench/0000", 0, 0)).commit


def _peaks(actions: Iterable[Callable[[], object]], first: int) -> tuple[int, int]:
    early = 0
    for number, action in enumerate(actions, 1):
        action()
        if number == first:
            early = peak_bytes()
    return early, peak_bytes()
