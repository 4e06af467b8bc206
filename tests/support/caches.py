"""Caches to look after: a finished run's own, and units of random scores."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.shards.scores import read_scores, write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from pipeline.upkeep.inventory import cache_commits
from schemas.columns import list_lengths
from schemas.fingerprint import fingerprint
from schemas.keys import commit_key
from schemas.records.scores import CacheCommit
from tests.support.runs import keys_below
from tests.support.tinytables import score_rows


def store_of(folder: Path) -> Storage:
    """Return the store of a run's folder."""
    return Storage(str(folder / "store"))


def scorer_of(storage: Storage) -> str:
    """Return the only scorer of a root."""
    (found,) = storage.folders("cache")
    return found


def copy_store(source: Storage, target: Storage) -> None:
    """Put all objects of a root that is a folder into another root."""
    for key in keys_below(source, ""):
        target.put(key, source.get(key) or b"")


def store_unit(
    storage: Storage,
    scorer: Scorer,
    rows: pa.Table,
    *,
    whose: Scorer | None = None,
    unit: str | None = None,
    scores: pa.Table | None = None,
) -> str:
    """Commit random scores of rollout rows to a scorer's cache; return the shard's key.

    Args:
        storage: the store.
        scorer: whose cache it is.
        rows: the rollout rows.
        whose: scorer that the shard says it is of; default the same.
        unit: digest that the commit says; default the right one.
        scores: score table; default a random one.
    """
    table = score_rows(rows) if scores is None else scores
    data = write_scores(table, (whose or scorer).identity)
    digests = rows.column("sequence_digest").to_pylist()
    tokens = int(list_lengths(rows, "response_ids").sum())
    shard = content_shard(f"{scorer.folder}/data", data, rows=rows.num_rows, tokens=tokens)
    commit = CacheCommit(
        unit=unit or fingerprint(digests),
        shard=shard,
        fingerprint=scorer.key,
        attempt="a",
        paid_by="demo/0000",
        teacher_tokens=0,
        reused_rows=0,
    )
    storage.put(shard.key, data)
    storage.put(f"{scorer.folder}/scorer.json", scorer.identity.to_bytes())
    storage.put(commit_key(scorer.folder, commit.unit), commit.to_bytes())
    return shard.key


def shards_of(folder: Path) -> list[Path]:
    """Return the score shards of a run's folder."""
    return sorted((folder / "store/cache").glob("*/data/*.parquet"))


def rows_of(storage: Storage) -> list[dict[str, Any]]:
    """Return all rows of a root's only scorer, by opd's own reader."""
    scorer = scorer_of(storage)
    tables = [
        read_scores(storage, commit.shard, scorer=scorer)
        for commit in cache_commits(storage, scorer)
    ]
    return [row for table in tables for row in table.to_pylist()]
