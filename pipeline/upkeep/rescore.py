"""Stored scores held against the teacher: some rows at random are scored again and compared.

Promises: rows are found through the manifests of the root's runs, and only the shards that hold a
chosen one are read; nothing is written. Must not: use a teacher of other weights than the scorer's.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cache.scorers import teacher_words
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import engine_version, open_engine, require_engine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource, find_model, model_identity
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from pipeline.scores.columns import scores_of
from pipeline.scores.drift import Differences, Drift, differences, drift_of
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.records import read_record
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_table
from pipeline.upkeep.inventory import rollout_shards, score_manifests
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.keys import scorer_key
from schemas.records.scores import ScorerIdentity
from schemas.records.shards import Shard


@dataclass(frozen=True)
class Rescored:
    """What scoring some stored rows again gave; the fields of the CLI's JSON line."""

    scorer: str
    teacher: str
    """Name of the teacher in the configuration."""
    rows: int
    tokens: int
    teacher_tokens: int
    """Tokens that the teacher read for it."""
    stored: dict[str, str]
    """How the scorer ran the weights: engine, version, dtype; and its codec."""
    now: dict[str, str]
    """How they were run now."""
    drift: Drift


@dataclass(frozen=True)
class StoredUnit:
    """A score shard and the rollout shard that has its sequences."""

    teacher: str
    """Name of the teacher in the run that the rollout is of."""
    rollout: Shard
    scores: Shard


def rescore(run: Run, scorer: str, num_rows: int, *, seed: int, progress: Progress) -> Rescored:
    """Return how far a scorer's stored rows are from what its teacher says of them now.

    Args:
        run: names the root, the teachers, and how they are run.
        scorer: key of the scorer.
        num_rows: rows to score again; all where there are fewer.
        seed: fixes which ones.
        progress: told of each unit.

    Raises:
        ConfigError: no run of the root has the scorer's sequences.
        IdentityError: no teacher of the configuration is the scorer's model.
        DataError: a shard is damaged.
    """
    storage, section = run.storage, run.config.score
    identity = read_record(storage, scorer_key(scorer), ScorerIdentity)
    teacher, source = _teacher(run, scorer, identity)
    require_engine(section.engine)
    dtype = run.config.teachers[teacher].dtype
    units = stored_units(storage, scorer)
    chosen = choose(storage, units, num_rows, seed=seed, note=progress.note)
    if not chosen:
        raise ConfigError(
            f"no run of {storage.root} has the sequences of scorer {scorer} any more, so that "
            f"there is nothing to score again: {len(units)} of its shards are named by a score "
            "manifest, and none of their rollout shards is there"
        )
    start = Start(source, section, dtype=dtype, use="score")
    with LazyEngine(lambda: open_engine(start, progress.note), progress.note) as engine:
        work = _Work(storage, scorer, identity, engine)
        parts, teacher_tokens = work.compare_all(chosen, progress)
    return Rescored(
        scorer=scorer,
        teacher=teacher,
        rows=sum(len(places) for _, places in chosen),
        tokens=sum(len(part.token) for part in parts),
        teacher_tokens=teacher_tokens,
        stored=_ways(identity.engine, identity.engine_version, identity.dtype, identity.codec),
        now=_ways(section.engine, engine_version(section.engine, source), dtype),
        drift=drift_of(parts),
    )


def stored_units(storage: Storage, scorer: str) -> list[StoredUnit]:
    """Return the shards of a scorer that rounds of the root name, each once, with their rollout."""
    found: dict[str, StoredUnit] = {}
    for manifest in score_manifests(storage):
        if manifest.scorer != scorer:
            continue
        shards = rollout_shards(storage, manifest)
        for unit in manifest.units:
            if unit.unit in shards and unit.shard.rows:
                stored = StoredUnit(manifest.teacher, shards[unit.unit], unit.shard)
                found.setdefault(unit.shard.key, stored)
    return list(found.values())


def choose(
    storage: Storage,
    units: Sequence[StoredUnit],
    num_rows: int,
    *,
    seed: int,
    note: Callable[[str], None],
) -> list[tuple[StoredUnit, list[int]]]:
    """Return rows of units whose rollout shards are there, as the seed picks them from all."""
    left = list(units)
    while left:
        chosen = list(_draw(left, num_rows, seed))
        gone = [unit for unit, _ in chosen if not storage.exists(unit.rollout.key)]
        if not gone:
            return chosen
        for unit in gone:
            note(f"left out, for its sequences are gone: {storage.url(unit.rollout.key)}")
        left = [unit for unit in left if unit not in gone]
    return []


def _draw(
    units: Sequence[StoredUnit], num_rows: int, seed: int
) -> Iterator[tuple[StoredUnit, list[int]]]:
    ends = np.cumsum([unit.scores.rows for unit in units])
    total = int(ends[-1])
    rows = np.array(sorted(random.Random(seed).sample(range(total), min(num_rows, total))))
    unit_index = np.searchsorted(ends, rows, side="right")
    for index in np.unique(unit_index).tolist():
        start = int(ends[index]) - units[index].scores.rows
        yield units[index], (rows[unit_index == index] - start).tolist()


def _teacher(run: Run, scorer: str, identity: ScorerIdentity) -> tuple[str, ModelSource]:
    """Return the teacher of the configuration that is a scorer's model."""
    unusable: ConfigError | None = None
    for name, section in run.config.teachers.items():
        try:
            source = find_model(run.place, section, f"teachers.{name}")
            if model_identity(source) == identity.model:
                return name, source
        except ConfigError as error:
            unusable = unusable or error
    if unusable is not None:
        raise unusable
    known = ", ".join(run.config.teachers)
    raise IdentityError(
        f"scorer {scorer} is of {teacher_words(identity)}, and none of the configuration's "
        f"teachers ({known}) is this model. Name it with --set teachers.NAME.model=…"
    )


@dataclass(frozen=True)
class _Work:
    """What all units share."""

    storage: Storage
    scorer: str
    identity: ScorerIdentity
    engine: LazyEngine

    def compare_all(
        self, chosen: Sequence[tuple[StoredUnit, list[int]]], progress: Progress
    ) -> tuple[list[Differences], int]:
        """Return how far the chosen rows are apart, and the tokens that the teacher read."""
        parts, total = list[Differences](), 0
        progress.start(f"rescore {self.scorer[:8]}", len(chosen), 0)
        try:
            for unit, places in chosen:
                part, tokens = self._compare(unit, places)
                parts.append(part)
                total += tokens
                progress.advance(1, tokens=len(part.token))
        finally:
            progress.stop()
        return parts, total

    def _compare(self, unit: StoredUnit, places: list[int]) -> tuple[Differences, int]:
        stored = read_scores(self.storage, unit.scores, scorer=self.scorer)
        rows = read_rollout(self.storage, unit.rollout)
        rows = rows.filter(pc.equal(rows.column("teacher"), unit.teacher))
        if not rows.column("sequence_digest").equals(stored.column("sequence_digest")):
            raise DataError(
                f"{self.storage.url(unit.scores.key)} does not score the sequences of "
                f"{self.storage.url(unit.rollout.key)}: one of them belongs to another unit"
            )
        index = pa.array(places)
        new, tokens = score_table(rows.take(index), self.engine, self.identity)
        return differences(scores_of(stored.take(index)), scores_of(new)), tokens


def _ways(engine: str, version: str, dtype: str, codec: str | None = None) -> dict[str, str]:
    ways = {"engine": engine, "engine_version": version, "dtype": dtype}
    return ways if codec is None else {**ways, "codec": codec}
