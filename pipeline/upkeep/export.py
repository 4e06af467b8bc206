"""Scores as plain files that other programs read: decoded columns, one row per sequence.

Promises: one shard is held at a time; a file or folder appears whole, under a name that was free.
Rows of a sequence that stands in several shards are written as often. Columns that the signal does
not have are left out.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runs.progress import Progress
from pipeline.shards.scores import read_scores
from pipeline.store.disk.appearing import appearing, require_free
from pipeline.store.records import read_record
from pipeline.store.storage import Storage
from pipeline.upkeep.inventory import cache_commits
from schemas.errors import ConfigError
from schemas.keys import scorer_folder, scorer_key
from schemas.records.scores import ScorerIdentity
from schemas.records.shards import Shard
from schemas.scoresignal import Signal
from schemas.tables import DIGEST

FORMATS = ("parquet", "jsonl")


@dataclass(frozen=True)
class Export:
    """What was written."""

    scorer: str
    path: str
    files: int
    rows: int
    tokens: int


class TableFile:
    """A file that tables with one schema are added to."""

    def __init__(self, path: Path, kind: str) -> None:
        """Name the file and its format; it is made by the first table."""
        self._path, self._kind = path, kind
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        """Write a table at the end of the file."""
        if self._kind == "parquet":
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
            self._writer.write_table(table)
            return
        if self._writer is None:
            self._writer = self._path.open("wb")
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        frame.write_ndjson(self._writer)

    def close(self) -> None:
        """End the file and flush it to disk."""
        if self._writer is not None:
            self._writer.close()
            with self._path.open("rb+") as file:
                os.fsync(file.fileno())


def export_scores(
    storage: Storage, scorer: str, target: Path, *, kind: str, progress: Progress
) -> Export:
    """Write a scorer's committed scores to a new file, or to a new folder with a file per shard.

    Args:
        storage: the store.
        scorer: its key.
        target: a file where its name ends with the format's, else a folder.
        kind: one of `FORMATS`.
        progress: told of each shard.

    Raises:
        ConfigError: the target is there, or the scorer has no scores.
        DataError: a commit or a shard is damaged.
    """
    require_free(target)
    shards = list({c.shard.sha256: c.shard for c in cache_commits(storage, scorer)}.values())
    if not shards:
        raise ConfigError(f"{storage.url(scorer_folder(scorer))} has no committed scores to export")
    whole = target.suffix == f".{kind}"
    files, rows, tokens = 0, 0, 0
    progress.start(f"export {scorer[:8]}", len(shards), 0)
    try:
        with appearing(target, folder=not whole) as path:
            for some in [shards] if whole else [[shard] for shard in shards]:
                name = path if whole else path / f"{some[0].sha256}.{kind}"
                for shard in _write(storage, scorer, name, some, kind=kind):
                    rows, tokens = rows + shard.rows, tokens + shard.tokens
                    progress.advance(1, tokens=shard.tokens)
                files += 1
    finally:
        progress.stop()
    return Export(scorer, str(target), files, rows, tokens)


def _write(
    storage: Storage, scorer: str, path: Path, shards: list[Shard], *, kind: str
) -> Iterator[Shard]:
    identity = read_record(storage, scorer_key(scorer), ScorerIdentity)
    names = [DIGEST.name, *(column.name for column in Signal.of(identity.signal).columns)]
    words = {"scorer": scorer, "identity": identity.model_dump(mode="json")}
    file = TableFile(path, kind)
    try:
        for shard in shards:
            table = read_scores(storage, shard, scorer=scorer).select(names)
            file.add(table.replace_schema_metadata({"opd_export": json.dumps(words)}))
            yield shard
    finally:
        file.close()
