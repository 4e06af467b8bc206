"""Copying of one root's teacher caches into another's.

The source is a stranger's. Promises: a record, shard or renumbering is taken only after it was
found to be what its name and its scorer say, and is written below the scorer's folder only; units
that are there already are left alone; killed and run again, it resumes.
"""

from dataclasses import dataclass
from functools import partial

from pipeline.cache.holds import held
from pipeline.cache.index.index import Index
from pipeline.cache.index.rebuild import mended
from pipeline.cache.scorecache import adopt_unit
from pipeline.runs.progress import Progress
from pipeline.runs.units import Worker, run_units
from pipeline.shards.scores import rows_of_shard, verified_renumbering
from pipeline.store.commit import committed_units
from pipeline.store.records import create_record, find_record, read_record
from pipeline.store.storage import Storage
from pipeline.store.writer import require_safe_writes
from pipeline.upkeep.verify import contradictions
from schemas.errors import ConfigError, DataError, IdentityError
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
        ConfigError: both are one root.
        DataError: a shard or record of the source is damaged.
        IdentityError: what the source calls this scorer is another one.
        StorageError: the target cannot be written, or ignores create-only writes.
    """
    if _place(source) == _place(target):
        raise ConfigError(f"{source.root} would be merged into itself: name another root")
    folder, key = scorer_folder(scorer), scorer_key(scorer)
    identity = read_record(source, key, ScorerIdentity)
    if identity.key != scorer:
        raise IdentityError(f"{source.url(key)} does not describe scorer {scorer}")
    names = sorted(committed_units(source, folder))
    index, copied = Index(target, scorer), list[CacheCommit]()

    def copy(position: int) -> int:
        commit, data, digests = _verified(source, scorer, names[position])
        copied.append(commit)
        adopt = partial(adopt_unit, target, index, commit, data, digests)
        mended(target, index, progress.note, adopt)
        return commit.shard.tokens

    tables = _renumberings(source, scorer)
    require_safe_writes(target)
    with held(target, [scorer]):
        create_record(target, key, identity)
        for digest, data in tables.items():
            target.put(f"{renumberings_folder(scorer)}/{digest}", data)
            create_record(target, renumbering_key(scorer), RenumberingRecord(sha256=digest))
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


def _place(storage: Storage) -> str:
    """Return where a root is, the same for each of its names."""
    return storage.root if storage.local_root is None else str(storage.local_root.resolve())


def _verified(source: Storage, scorer: str, unit: str) -> tuple[CacheCommit, bytes, list[str]]:
    """Return a unit's commit, the bytes of its shard, and the sequences in it, all verified."""
    key = commit_key(scorer_folder(scorer), unit)
    commit = read_record(source, key, CacheCommit)
    if commit.fingerprint != scorer:
        raise IdentityError(
            f"{source.url(key)} is of scorer {commit.fingerprint}, expected {scorer}: it was "
            "copied or changed. Delete it in that root, and merge again"
        )
    data = source.read_shard(commit.shard)
    table = rows_of_shard(source, commit.shard, data, scorer=scorer)
    if reasons := contradictions(commit, table, key=key):
        raise DataError(
            f"{source.url(commit.shard.key)} is not taken: {reasons[0]}. Delete the commit in that "
            "root, and merge again"
        )
    return commit, data, table.column("sequence_digest").to_pylist()


def _renumberings(source: Storage, scorer: str) -> dict[str, bytes]:
    """Return the tables by which ids were renumbered, verified; a shard names its own by digest.

    The one that new shards use comes first, for it decides that in the other root too.
    """
    pinned = find_record(source, renumbering_key(scorer), RenumberingRecord)
    first = "" if pinned is None else pinned.sha256
    names = source.names(renumberings_folder(scorer))
    ordered = sorted(names, key=lambda name: (name != first, name))
    return {name: verified_renumbering(source, scorer, name) for name in ordered}
