"""What the caches of a root hold, and which rounds use them: from commits and manifests alone.

Promises: scorers, runs and rounds are found by listing folders; commits are read several at once.
Must not: open a shard.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pipeline.commit import find_record
from pipeline.storage import Storage
from schemas.errors import ConfigError, DataError
from schemas.manifest import CacheCommit, Record, ScoreManifest, ScorerIdentity

R = TypeVar("R", bound=Record)

READERS = 16
"""Small objects that are read at once."""
SHORT = 8
"""Characters of a scorer's key that people are shown."""


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


def scorer_folder(scorer: str) -> str:
    """Return the key prefix of a scorer's cache."""
    return f"cache/{scorer}"


def find_scorers(storage: Storage, start: str | None) -> list[str]:
    """Return the scorers of a root whose key begins with some characters; all without any.

    Raises:
        ConfigError: the root has no scorer, or none or several keys begin so.
    """
    known = sorted(storage.folders("cache"))
    found = [name for name in known if name.startswith(start or "")]
    if not found or (start is not None and len(found) > 1):
        listed = ", ".join(known) or "none"
        raise ConfigError(
            f"{storage.url('cache')}: {len(found)} scorers have a key that begins with "
            f"{start or ''!r}, expected one; scorers there: {listed}"
        )
    return found


def find_scorer_key(storage: Storage, start: str) -> str:
    """Return the one scorer of a root whose key begins with some characters.

    Raises:
        ConfigError: none or several keys begin so.
    """
    return find_scorers(storage, start)[0]


def list_caches(storage: Storage) -> Iterator[CacheEntry]:
    """Yield what each scorer of a root has, in order of their keys.

    Raises:
        DataError: a record is damaged.
    """
    scorers = sorted(storage.folders("cache"))
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
    for run in sorted(storage.folders("runs")):
        for index in sorted(storage.folders(f"runs/{run}/rounds")):
            folder = f"runs/{run}/rounds/{index}/score"
            for teacher in sorted(storage.folders(folder)):
                key = f"{folder}/{teacher}/manifest.json"
                manifest = find_record(storage, key, ScoreManifest)
                if manifest is not None:
                    yield manifest


def cache_commits(storage: Storage, scorer: str) -> Iterator[CacheCommit]:
    """Yield the commits of a scorer's cache, in order of their names.

    Raises:
        DataError: a commit is damaged.
    """
    folder = f"{scorer_folder(scorer)}/commits"
    keys = [f"{folder}/{name}" for name in sorted(storage.names(folder))]
    for _, found in read_records(storage, keys, CacheCommit):
        if isinstance(found, DataError):
            raise found
        yield found


def read_records(
    storage: Storage, keys: Sequence[str], kind: type[R]
) -> Iterator[tuple[str, R | DataError]]:
    """Yield each key with its record, or with what is wrong; those that are gone are left out."""

    def read(key: str) -> R | DataError | None:
        try:
            return find_record(storage, key, kind)
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), 64 * READERS):
            some = keys[start : start + 64 * READERS]
            for key, found in zip(some, pool.map(read, some), strict=True):
                if found is not None:
                    yield key, found


def find_identity(storage: Storage, scorer: str) -> ScorerIdentity | None:
    """Return the identity that a scorer's cache describes, or None where it has none."""
    return find_record(storage, f"{scorer_folder(scorer)}/scorer.json", ScorerIdentity)


def teacher_words(identity: ScorerIdentity) -> str:
    """Return a scorer's teacher in words: its place on the hub, or the digest of its weights."""
    model = identity.model
    if "hub" in model:
        name = f"{model['hub']}@{str(model.get('revision'))[:SHORT]}"
    elif "mixture" in model:
        name = f"mixture of {len(model['mixture'])}"
    else:
        name = f"weights {str(model.get('weights'))[:SHORT]}"
    origin = ", ".join(key[:SHORT] for key in identity.lineage)
    made = f"made from {origin}" if origin else f"{identity.engine} {identity.engine_version}"
    reuse = "" if identity.reuse == "exact" else f", {identity.reuse}"
    return f"{name}, {identity.dtype}, {made}{reuse}"


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
        k=0 if identity is None else int(identity.signal["k"]),
        units=units,
        rows=rows,
        scored_rows=max(rows - reused, 0),
        tokens=tokens,
        bytes=size,
        uses=uses,
    )
