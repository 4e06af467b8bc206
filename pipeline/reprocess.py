"""Reprocessing: a new scorer whose scores are made from stored ones, with no teacher.

Promises: units, commits and index as of any scorer; killed and run again, it goes on; the new
scorer says which one it comes from.
"""

from dataclasses import dataclass

from pipeline.cache import ScoreCache
from pipeline.codec import CODECS
from pipeline.commit import commit_key, committed_units, create_record, read_record, writer
from pipeline.derive import check_derivable, derive
from pipeline.models import ModelSource
from pipeline.scorearrays import scores_of, table_of
from pipeline.scorer import Scorer, find_named, name_key
from pipeline.scoretable import read_scores
from pipeline.stage import Progress, Worker, run_units
from pipeline.storage import Storage
from schemas.errors import ConfigError, ConflictError
from schemas.manifest import CacheCommit, ScorerIdentity, ScorerName
from schemas.scoresignal import Signal
from schemas.tables import list_lengths


@dataclass(frozen=True)
class Reprocessed:
    """What one call did; the fields of the CLI's JSON line."""

    scorer: str
    """Key of the new scorer."""
    name: str
    source: str
    units: int
    """Units that this call made."""
    rows: int
    tokens: int
    complete: bool
    """Whether every unit of the source is there now."""


def reprocess(
    storage: Storage,
    source: str,
    name: str,
    *,
    codec: str | None,
    signal: dict[str, object],
    worker: Worker,
    progress: Progress,
) -> Reprocessed:
    """Make a scorer from another one's scores.

    Args:
        storage: the root's store.
        source: key or name of the scorer to start from.
        name: what the new scorer is called; a configuration names it in `teachers.NAME.scores`.
        codec: form of the new shards; None for the source's.
        signal: fields of `Signal` that change.
        worker: which units are ours.
        progress: told of each unit.

    Raises:
        ConfigError: no such scorer, nothing changes, or something was not kept.
        ConflictError: the name is another scorer's.
    """
    if codec is not None and codec not in CODECS:
        raise ConfigError(f"there is no codec {codec!r}; choose from {', '.join(CODECS)}")
    old_key, old = find_named(storage, source)
    before = Signal.of(old.signal)
    after = Signal.of({**before.words(), **signal})
    check_derivable(before, after)
    changes = {"codec": codec or old.codec, "signal": after.words(), "lineage": (old_key,)}
    new = Scorer(name, ModelSource(name, None, False), old.model_copy(update=changes))
    if (new.identity.codec, after) == (old.codec, before):
        raise ConfigError(f"nothing would change: {old_key} has this codec and signal already")
    with writer(storage):
        _pin(storage, new)
        return _run(storage, old_key, new, worker=worker, progress=progress)


def _pin(storage: Storage, scorer: Scorer) -> None:
    record = ScorerName(scorer=scorer.key)
    held = create_record(storage, name_key(scorer.name), record)
    if held != record:
        raise ConflictError(
            f"the name {scorer.name!r} is taken by scorer {held.scorer}: choose another one"
        )
    create_record(storage, f"{scorer.folder}/scorer.json", scorer.identity)


def _run(
    storage: Storage, old_key: str, scorer: Scorer, *, worker: Worker, progress: Progress
) -> Reprocessed:
    names = sorted(committed_units(storage, f"cache/{old_key}"))
    cache = ScoreCache(storage, scorer, progress.note)
    made: list[CacheCommit] = []

    def compute(index: int) -> int:
        made.append(_unit(storage, old_key, scorer.identity, cache, names[index]))
        return made[-1].shard.tokens

    done = run_units(
        storage,
        scorer.folder,
        names,
        label=f"reprocess {old_key[:8]}",
        worker=worker,
        compute=compute,
        progress=progress,
    )
    return Reprocessed(
        scorer=scorer.key,
        name=scorer.name,
        source=old_key,
        units=len(made),
        rows=sum(commit.shard.rows for commit in made),
        tokens=sum(commit.shard.tokens for commit in made),
        complete=done.issuperset(names),
    )


def _unit(
    storage: Storage, old_key: str, identity: ScorerIdentity, cache: ScoreCache, name: str
) -> CacheCommit:
    commit = read_record(storage, commit_key(f"cache/{old_key}", name), CacheCommit)
    table = read_scores(storage, commit.shard, scorer=old_key)
    signal = Signal.of(identity.signal)
    digests = table.column("sequence_digest").to_pylist()
    lengths = list_lengths(table, "token_logprob")
    scores = derive(scores_of(table), signal) if table.num_rows else None
    made = table if scores is None else table_of(digests, scores, lengths, signal)
    return cache.publish(
        name, made, paid_by=f"reprocess/{old_key}", teacher_tokens=0, reused_rows=table.num_rows
    )
