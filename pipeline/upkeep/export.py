"""Scores as plain files that other programs read: decoded columns, one row per sequence.

Promises: one shard is held at a time; a file or folder appears whole, under a name that was free.
Rows of a sequence that stands in several shards are written as often. Columns that the signal does
not have are left out.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runs.progress import Progress
from pipeline.shards.scores import read_scores
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
    if target.exists():
        raise ConfigError(f"{target} is there already, and export overwrites nothing: name another")
    shards = list({c.shard.sha256: c.shard for c in cache_commits(storage, scorer)}.values())
    if not shards:
        raise ConfigError(f"{storage.url(scorer_folder(scorer))} has no committed scores to export")
    whole = target.suffix == f".{kind}"
    files, rows, tokens = 0, 0, 0
    progress.start(f"export {scorer[:8]}", len(shards), 0)
    try:
        with _published(target, folder=not whole) as path:
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


@contextmanager
def _published(target: Path, *, folder: bool) -> Iterator[Path]:
    """Give a name beside a target, and rename what is there to the target when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder:
            temporary.rename(target)  # fails where a folder with files was created in the meantime
        else:
            os.link(temporary, target)
    except FileExistsError as error:
        raise ConfigError(f"{target} was created in the meantime; choose another name") from error
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
