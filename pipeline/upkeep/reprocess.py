"""Reprocessing: a new scorer whose scores are made from stored ones, with no teacher.

Promises: units, commits and index as of any scorer; killed and run again, it resumes; the new
scorer says which ones it comes from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cache.holds import held
from pipeline.cache.scorecache import Origin, ScoreCache
from pipeline.cache.scorers import find_named, stored_scorer
from pipeline.runs.progress import Progress
from pipeline.runs.units import Worker, run_units
from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.mixture import check_mixable, mix
from pipeline.scores.reduction import check_derivable, derive
from pipeline.shards.codec import CODECS
from pipeline.shards.scores import read_scores
from pipeline.store.commit import committed_units
from pipeline.store.records import create_record, read_record
from pipeline.store.storage import Storage
from pipeline.store.writer import require_safe_writes
from schemas.columns import list_lengths
from schemas.config.section import NAME_PATTERN
from schemas.errors import ConfigError, ConflictError, IdentityError
from schemas.keys import commit_key, name_key, scorer_folder, scorer_key
from schemas.records.scores import CacheCommit, ScorerIdentity, ScorerName
from schemas.scoresignal import Signal


@dataclass(frozen=True)
class Reprocessed:
    """What one call did; the fields of the CLI's JSON line."""

    scorer: str
    """Key of the new scorer."""
    name: str
    sources: tuple[str, ...]
    units: int
    """Units that this call made."""
    rows: int
    tokens: int
    complete: bool
    """Whether every unit of the source is there now."""


def reprocess(
    storage: Storage,
    sources: Sequence[str],
    name: str,
    *,
    weights: Sequence[float] = (),
    codec: str | None,
    signal: Mapping[str, Any],
    worker: Worker,
    progress: Progress,
) -> Reprocessed:
    """Make a scorer from the scores of another one, or from those of several.

    Args:
        storage: the root's store.
        sources: keys or names of the scorers to start from; the first one's units are made.
        name: what the new scorer is called; a configuration names it in `teachers.NAME.scores`.
        weights: of the sources in their mixture, where there are several.
        codec: form of the new shards; None for the source's.
        signal: fields of `Signal` that change.
        worker: which units are ours.
        progress: told of each unit.

    Raises:
        ConfigError: no such scorer, nothing changes, something was not kept, or a source lacks
            sequences of the first one.
        ConflictError: the name is another scorer's.
        IdentityError: the sources do not share a tokenizer.
        StorageError: the store cannot be written, or ignores create-only writes.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"a scorer cannot be called {name!r}: use up to 64 letters, digits, '.', '_' and '-'"
        )
    if codec is not None and codec not in CODECS:
        raise ConfigError(f"there is no codec {codec!r}; choose from {', '.join(CODECS)}")
    found = [find_named(storage, source) for source in sources]
    old = found[0][1]
    signals = [Signal.of(identity.signal) for _, identity in found]
    before = signals[0] if len(found) == 1 else check_mixable(signals, weights)
    if len(found) == 1 and weights:
        raise ConfigError("a weight needs several sources: give --from for each of them")
    after = replace(before, **signal)
    _check_kept(after)
    check_derivable(before, after)
    changes: dict[str, object] = {
        "codec": codec or old.codec,
        "signal": after.words(),
        "lineage": tuple(key for key, _ in found),
    }
    if len(found) > 1:
        changes["model"] = _mixture(found, weights)
    new = old.model_copy(update=changes)
    if len(found) == 1 and (new.codec, after) == (old.codec, before):
        raise ConfigError(f"nothing would change: {found[0][0]} has this codec and signal already")
    require_safe_writes(storage)
    keys = [key for key, _ in found]
    with held(storage, [*dict.fromkeys(keys), new.key]):
        for key in keys:  # it may have been deleted before it was held
            stored_scorer(storage, key)
        _pin(storage, name, new)
        work = _Work(storage, keys, list(weights), before, after)
        return _run(work, name, new, worker=worker, progress=progress)


def _check_kept(signal: Signal) -> None:
    """Make sure that a signal is one that a configuration could ask for, too.

    Raises:
        ConfigError: it is not.
    """
    if signal.top_p is None and signal.min_k != 1:
        raise ConfigError(
            f"min_k = {signal.min_k} needs top_p: it is the fewest ids that it leaves"
        )
    if signal.top_p is not None and not 0 < signal.top_p < 1:
        raise ConfigError(f"top_p = {signal.top_p} keeps nothing or everything: give 0 < top_p < 1")
    if signal.min_k > max(signal.k, 1):
        raise ConfigError(f"min_k = {signal.min_k} is above k = {signal.k}")


def _mixture(
    found: Sequence[tuple[str, ScorerIdentity]], weights: Sequence[float]
) -> dict[str, object]:
    """Return what stands for a model in the identity of a mixture."""
    kinds = {(identity.tokenizer, identity.vocab_size) for _, identity in found}
    if len(kinds) > 1:
        raise IdentityError(
            f"the scorers to mix have {len(kinds)} tokenizers or vocabulary sizes: their ids do "
            "not mean the same"
        )
    models = [identity.model for _, identity in found]
    return {"mixture": [[m, w] for m, w in zip(models, weights, strict=True)]}


def _pin(storage: Storage, name: str, identity: ScorerIdentity) -> None:
    record = ScorerName(scorer=identity.key)
    held = create_record(storage, name_key(name), record)
    if held != record:
        raise ConflictError(
            f"the name {name!r} is taken by scorer {held.scorer}: choose another one"
        )
    create_record(storage, scorer_key(identity.key), identity)


@dataclass(frozen=True)
class _Work:
    """What all units share."""

    storage: Storage
    sources: list[str]
    weights: list[float]
    mixed: Signal
    signal: Signal

    def unit(self, name: str, others: Sequence[ScoreCache]) -> pa.Table:
        """Return the new scores of a unit of the first source."""
        first = self.sources[0]
        commit = read_record(self.storage, commit_key(scorer_folder(first), name), CacheCommit)
        table = read_scores(self.storage, commit.shard, scorer=first)
        if not table.num_rows:
            return table
        scores = scores_of(table)
        if others:
            rest = [scores_of(_same_rows(other, table, name)) for other in others]
            scores = mix([scores, *rest], self.weights, k=self.mixed.k)
        digests = table.column("sequence_digest").to_pylist()
        lengths = list_lengths(table, "token_logprob")
        return table_of(digests, derive(scores, self.signal), lengths, self.signal)


def _same_rows(cache: ScoreCache, table: pa.Table, unit: str) -> pa.Table:
    digests = table.column("sequence_digest")
    known = cache.known(pc.unique(digests).to_pylist())
    order = pc.index_in(digests, value_set=known.column("sequence_digest"))
    if order.null_count:
        raise ConfigError(
            f"{order.null_count} of {table.num_rows} sequences of unit {unit} are not scored by "
            f"scorer {cache.scorer}: score them with it first"
        )
    return known.take(order)


def _run(
    work: _Work, name: str, identity: ScorerIdentity, *, worker: Worker, progress: Progress
) -> Reprocessed:
    storage, source = work.storage, work.sources[0]
    names = sorted(committed_units(storage, scorer_folder(source)))
    cache = ScoreCache(storage, identity, progress.note, held_bytes=0)
    others = [
        ScoreCache(storage, stored_scorer(storage, key), progress.note) for key in work.sources[1:]
    ]
    made: list[CacheCommit] = []

    def compute(index: int) -> int:
        table = work.unit(names[index], others)
        origin = Origin(f"reprocess/{source}", teacher_tokens=0, reused_rows=table.num_rows)
        commit = cache.publish(names[index], table, origin).commit
        made.append(commit)
        return commit.shard.tokens

    done = run_units(
        storage,
        scorer_folder(identity.key),
        names,
        label=f"reprocess {source[:8]}",
        worker=worker,
        compute=compute,
        progress=progress,
    )
    return Reprocessed(
        scorer=identity.key,
        name=name,
        sources=tuple(work.sources),
        units=len(made),
        rows=sum(commit.shard.rows for commit in made),
        tokens=sum(commit.shard.tokens for commit in made),
        complete=done.issuperset(names),
    )
