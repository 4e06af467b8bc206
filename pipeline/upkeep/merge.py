"""Copying of one root's teacher caches into another's.

Promises: every shard is verified on the way; units that are there already are left alone; killed
and run again, it resumes.
"""

from dataclasses import dataclass

from pipeline.cache.index.index import Index
from pipeline.cache.scorecache import adopt_unit
from pipeline.runs.progress import Progress
from pipeline.runs.units import Worker, run_units
from pipeline.shards.parquet import read_table
from pipeline.store.commit import committed_units
from pipeline.store.records import create_record, read_record
from pipeline.store.storage import Storage
from pipeline.store.writer import require_safe_writes
from schemas.errors import DataError, IdentityError
from schemas.keys import commit_key, renumbering_key, renumberings_folder, scorer_folder, scorer_key
from schemas.records.scores import CacheCommit, RenumberingRecord, ScorerIdentity


@dataclass(frozen=True)
class Merged:
    """What was copied of one scorer; the fields of the CLI's JSON."""

    scorer: str
    units: int
    rows: int
    tokens: int
    bytes: int


def merge_scorer(source: Storage, target: Storage, scorer: str, progress: Progress) -> Merged:
    """Copy the units of a scorer that a root lacks from another root.

    Args:
        source: the root that has them.
        target: the root that gets them.
        scorer: key of the scorer.
        progress: told of each unit.

    Raises:
        DataError: a shard or record of the source is damaged.
        IdentityError: what the source calls this scorer is another one.
        StorageError: the target cannot be written, or ignores create-only writes.
    """
    folder, key = scorer_folder(scorer), scorer_key(scorer)
    identity = read_record(source, key, ScorerIdentity)
    if identity.key != scorer:
        raise IdentityError(f"{source.url(key)} does not describe scorer {scorer}")
    names = sorted(committed_units(source, folder))
    index, copied = Index(target, scorer), list[CacheCommit]()

    def copy(position: int) -> int:
        commit = read_record(source, commit_key(folder, names[position]), CacheCommit)
        data = source.read_shard(commit.shard)
        table, _ = read_table(data, where=source.url(commit.shard.key), columns=["sequence_digest"])
        copied.append(commit)
        adopt_unit(target, index, commit, data, table.column("sequence_digest").to_pylist())
        return commit.shard.tokens

    require_safe_writes(target)
    create_record(target, key, identity)
    _copy_renumberings(source, target, scorer)
    run_units(
        target,
        folder,
        names,
        label=f"merge {scorer[:8]}",
        worker=Worker(),
        compute=copy,
        progress=progress,
    )
    return Merged(
        scorer,
        len(copied),
        rows=sum(c.shard.rows for c in copied),
        tokens=sum(c.shard.tokens for c in copied),
        bytes=sum(c.shard.bytes for c in copied),
    )


def _copy_renumberings(source: Storage, target: Storage, scorer: str) -> None:
    """Copy the tables by which ids were renumbered; a shard names its own by digest."""
    folder = renumberings_folder(scorer)
    for name in source.names(folder):
        key = f"{folder}/{name}"
        data = source.get(key)
        if data is None:
            raise DataError(f"{source.url(key)} vanished while it was read")
        target.put(key, data)
        create_record(target, renumbering_key(scorer), RenumberingRecord(sha256=name))
