"""What the caches of a root hold, and which rounds use them: from commits and manifests alone.

Promises: scorers, runs and rounds are found by listing folders; commits are read several at once.
Must not: open a shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.cache.scorers import find_identity, known_scorers, teacher_words
from pipeline.store.commit import commit_names
from pipeline.store.records import find_record, read_records
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.keys import (
    ROUNDS,
    RUNS,
    SCORE,
    commits_folder,
    manifest_key,
    run_folder,
    scorer_folder,
    stage_folder,
)
from schemas.records.runs import RolloutManifest
from schemas.records.scores import CacheCommit, ScoreManifest
from schemas.records.shards import Shard


@dataclass(frozen=True)
class Use:
    """A round whose score manifest names a scorer."""

    run: str
    round: int
    teacher: str


@dataclass(frozen=True)
class CacheEntry:
    """One scorer's cache."""

    scorer: str
    teacher: str
    """The teacher in words."""
    codec: str
    k: int
    units: int
    rows: int
    scored_rows: int
    """Rows that the teacher scored for it; the others were copied from other shards."""
    tokens: int
    bytes: int
    uses: list[Use]


def list_caches(storage: Storage) -> Iterator[CacheEntry]:
    """Yield what each scorer of a root has, in order of their keys.

    Raises:
        DataError: a record is damaged.
    """
    scorers = known_scorers(storage)
    uses = uses_by_scorer(storage) if scorers else {}
    for scorer in scorers:
        yield _entry(storage, scorer, uses.get(scorer, []))


def uses_by_scorer(storage: Storage) -> dict[str, list[Use]]:
    """Return the rounds that use each scorer, by run, round and teacher."""
    uses: dict[str, list[Use]] = {}
    for manifest in score_manifests(storage):
        use = Use(manifest.run, manifest.round, manifest.teacher)
        uses.setdefault(manifest.scorer, []).append(use)
    return uses


def score_manifests(storage: Storage) -> Iterator[ScoreManifest]:
    """Yield the score manifests of all runs of a root, by run, round and teacher."""
    for run in sorted(storage.folders(RUNS)):
        rounds = f"{run_folder(run)}/{ROUNDS}"
        for index in sorted(storage.folders(rounds)):
            folder = f"{rounds}/{index}/{SCORE}"
            for teacher in sorted(storage.folders(folder)):
                key = manifest_key(f"{folder}/{teacher}")
                manifest = find_record(storage, key, ScoreManifest)
                if manifest is not None:
                    yield manifest


def rollout_shards(storage: Storage, manifest: ScoreManifest) -> dict[str, Shard]:
    """Return the rollout shard of each unit that a score manifest is of; none where it is gone."""
    key = manifest_key(stage_folder(manifest.run, manifest.round, "rollout"))
    rollout = find_record(storage, key, RolloutManifest)
    return {} if rollout is None else {unit.unit: unit.shard for unit in rollout.units}


def cache_commits(storage: Storage, scorer: str) -> Iterator[CacheCommit]:
    """Yield the commits of a scorer's cache, in order of their names.

    Raises:
        DataError: a commit is damaged.
    """
    folder = commits_folder(scorer_folder(scorer))
    keys = [f"{folder}/{name}" for name in commit_names(storage, scorer_folder(scorer))]
    for _, found in read_records(storage, keys, CacheCommit):
        if isinstance(found, DataError):
            raise found
        yield found


def _entry(storage: Storage, scorer: str, uses: list[Use]) -> CacheEntry:
    identity = find_identity(storage, scorer)
    units, reused = 0, 0
    shards = {}
    for commit in cache_commits(storage, scorer):
        units, reused = units + 1, reused + commit.reused_rows
        shards[commit.shard.sha256] = (commit.shard.rows, commit.shard.tokens, commit.shard.bytes)
    rows, tokens, size = (sum(column) for column in zip((0, 0, 0), *shards.values(), strict=True))
    return CacheEntry(
        scorer=scorer,
        teacher="unknown: no scorer.json" if identity is None else teacher_words(identity),
        codec="" if identity is None else identity.codec,
        k=0 if identity is None else identity.signal["k"],
        units=units,
        rows=rows,
        scored_rows=max(rows - reused, 0),
        tokens=tokens,
        bytes=size,
        uses=uses,
    )
