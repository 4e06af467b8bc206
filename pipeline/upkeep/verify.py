"""Committed score shards, read again one by one: which are damaged, missing or of another scorer.

Promises: every commit of a scorer is looked at, or a random sample that a seed fixes; a bad object
is reported by name and never ends the work.
"""

import random
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.cache.scorers import find_identity
from pipeline.runs.progress import Progress
from pipeline.shards.scores import read_scores
from pipeline.store.commit import commit_names
from pipeline.store.records import read_records
from pipeline.store.storage import Storage
from schemas.columns import list_lengths
from schemas.errors import DataError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import commits_folder, scorer_folder, scorer_key
from schemas.records.scores import CacheCommit


@dataclass(frozen=True)
class Fault:
    """An object that is not what it should be."""

    key: str
    reason: str


@dataclass
class Verification:
    """What was found in one scorer's cache."""

    scorer: str
    commits: int
    """Commits that the cache has."""
    checked: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    damaged: list[Fault] = field(default_factory=list)
    missing: list[Fault] = field(default_factory=list)
    foreign: list[Fault] = field(default_factory=list)
    """Shards and commits of another scorer."""


def verify_scorer(
    storage: Storage, scorer: str, *, sample: int | None, seed: int, progress: Progress
) -> Verification:
    """Return what is wrong with a scorer's committed shards.

    Args:
        storage: the store.
        scorer: its key.
        sample: commits to look at, chosen at random; None for all.
        seed: fixes the choice.
        progress: told of each commit.
    """
    folder = commits_folder(scorer_folder(scorer))
    names = commit_names(storage, scorer_folder(scorer))
    found = Verification(scorer, len(names))
    if sample is not None and sample < len(names):
        names = sorted(random.Random(seed).sample(names, sample))
    _check_identity(storage, scorer, found)
    progress.start(f"verify {scorer[:8]}", len(names), 0)
    try:
        keys = [f"{folder}/{name}" for name in names]
        for key, commit in read_records(storage, keys, CacheCommit):
            found.checked += 1
            if isinstance(commit, DataError):
                found.damaged.append(Fault(key, str(commit)))
            else:
                _check_commit(storage, commit, key, found)
            progress.advance(1, tokens=0 if isinstance(commit, DataError) else commit.shard.tokens)
    finally:
        progress.stop()
    return found


def _check_commit(storage: Storage, commit: CacheCommit, key: str, found: Verification) -> None:
    shard = commit.shard
    if commit.fingerprint != found.scorer:
        reason = f"the commit is of scorer {commit.fingerprint}"
        found.foreign.append(Fault(key, reason))
    try:
        table = read_scores(storage, shard, scorer=found.scorer)
    except IdentityError as error:
        found.foreign.append(Fault(shard.key, str(error)))
        return
    except DataError as error:
        faults = found.damaged if storage.exists(shard.key) else found.missing
        faults.append(Fault(shard.key, str(error)))
        return
    found.rows, found.bytes = found.rows + table.num_rows, found.bytes + shard.bytes
    found.tokens += int(list_lengths(table, "token_logprob").sum())
    reasons = contradictions(commit, table, key=key)
    found.damaged.extend(Fault(shard.key, reason) for reason in reasons)


def contradictions(commit: CacheCommit, table: pa.Table, *, key: str) -> list[str]:
    """Return how the rows of a unit's shard differ from what its commit says.

    Args:
        commit: the commit.
        table: the shard's rows.
        key: key of the commit.
    """
    rows, tokens = table.num_rows, int(list_lengths(table, "token_logprob").sum())
    found = []
    if (rows, tokens) != (commit.shard.rows, commit.shard.tokens):
        said = f"{commit.shard.rows} rows and {commit.shard.tokens} tokens"
        found.append(f"it holds {rows} rows and {tokens} tokens, {key} says {said}")
    if fingerprint(table.column("sequence_digest").to_pylist()) != commit.unit:
        found.append(f"it holds other sequences than {key} says")
    return found


def _check_identity(storage: Storage, scorer: str, found: Verification) -> None:
    """Look at the description of the scorer, whose fingerprint is its key."""
    key = scorer_key(scorer)
    try:
        identity = find_identity(storage, scorer)
    except DataError as error:
        found.damaged.append(Fault(key, str(error)))
        return
    if identity is None:
        found.missing.append(Fault(key, "the scorer is not described"))
    elif identity.key != scorer:
        found.foreign.append(Fault(key, "it describes another scorer"))
