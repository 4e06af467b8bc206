"""The small records of a run, read once: manifests, times of calls, figures of steps.

Owns: what the report knows before it opens a shard of sequences. Promises: loads no model; what
may be deleted and is gone is noted, what is damaged is an error.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import polars as pl

from pipeline.runs.gate import Gap, measured_gap
from pipeline.runs.reporting import stage_calls
from pipeline.runs.run import Run, changed_settings
from pipeline.shards.parquet import read_table
from pipeline.store.commit import committed_units
from pipeline.store.records import READERS, find_record
from schemas.errors import DataError
from schemas.keys import (
    GRADE,
    ROUNDS,
    STUDENT,
    manifest_key,
    prompts_folder,
    score_stage,
    teacher_label,
)
from schemas.records.rewards import RewardManifest
from schemas.records.runs import EvalManifest, PromptsManifest, RolloutManifest, RolloutPlan
from schemas.records.scores import ScoreManifest
from schemas.records.training import TrainManifest

STAGES = ("rollout", "grade", "score", "train", "eval")


@dataclass(frozen=True)
class RoundRecords:
    """What is stored of one round that has begun."""

    round: int
    plan: RolloutPlan
    rollout: RolloutManifest | None
    scores: dict[str, ScoreManifest]
    """By teacher, those that are complete."""
    gap: Gap | None
    """Reverse KL of the student that sampled."""
    rewards: RewardManifest | None
    train: TrainManifest | None
    evaluation: EvalManifest | None
    calls: pl.DataFrame
    """A row for each call of a stage."""
    steps: pl.DataFrame
    """A row for each optimizer step; no column but `step` where nothing is trained yet."""
    begun: dict[str, int]
    """Committed units of stages that are not complete."""
    notes: tuple[str, ...] = ()
    """What is named and gone."""


@dataclass(frozen=True)
class RunRecords:
    """What is stored of a run."""

    run: Run
    rounds: tuple[RoundRecords, ...]
    prompts: PromptsManifest | None
    start: EvalManifest | None
    """The student as it came."""
    teachers: dict[str, EvalManifest]
    """Those that were graded."""
    changed: tuple[str, ...]
    """Settings of the file that are not those the run began with."""


def read_records(run: Run) -> RunRecords:
    """Return what is stored of a run, from its small objects alone.

    Raises:
        DataError: a record is damaged.
    """
    listed = run.storage.folders(f"{run.folder}/{ROUNDS}")
    numbers = sorted(int(name) for name in listed if name.isdecimal())
    with ThreadPoolExecutor(READERS) as pool:
        found = [one for one in pool.map(partial(_round, run), numbers) if one is not None]
    graded = {name: run.baseline(teacher_label(name)) for name in run.config.teachers}
    key = manifest_key(prompts_folder(run.name, "train"))
    return RunRecords(
        run=run,
        rounds=tuple(found),
        prompts=find_record(run.storage, key, PromptsManifest),
        start=run.baseline(STUDENT),
        teachers={name: one for name, one in graded.items() if one is not None},
        changed=tuple(changed_settings(run)),
    )


def _round(run: Run, index: int) -> RoundRecords | None:
    plan = run.plan(index)
    if plan is None:
        return None
    scores = {name: run.score(index, name) for name in run.config.teachers}
    done = {name: one for name, one in scores.items() if one is not None}
    rollout, train = run.rollout(index), run.train(index)
    steps, notes = _steps(run, train)
    calls = pl.from_arrow(stage_calls(run, index))
    assert isinstance(calls, pl.DataFrame)
    rewards = run.rewards(index)
    return RoundRecords(
        round=index,
        plan=plan,
        rollout=rollout,
        scores=done,
        gap=measured_gap(run, index, list(done.values())),
        rewards=rewards,
        train=train,
        evaluation=run.evaluation(index),
        calls=calls,
        steps=steps,
        begun=dict(
            _begun(run, index, rollout is None, rewards is None, missing=set(scores) - set(done))
        ),
        notes=notes,
    )


def _begun(
    run: Run, index: int, rolls: bool, grades: bool, *, missing: set[str]
) -> Iterator[tuple[str, int]]:
    """Yield the committed units of stages that have no manifest."""
    if rolls:
        yield "rollout", len(committed_units(run.storage, run.stage_folder(index, "rollout")))
    if grades and run.config.reward is not None:
        yield "grade", len(committed_units(run.storage, run.stage_folder(index, GRADE)))
    if missing:
        folders = [run.stage_folder(index, score_stage(name)) for name in sorted(missing)]
        yield "score", sum(len(committed_units(run.storage, folder)) for folder in folders)


def _steps(run: Run, train: TrainManifest | None) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return a round's optimizer steps, or none and why."""
    none = pl.DataFrame({"step": []}, schema={"step": pl.Int64})
    if train is None:
        return none, ()
    where = run.storage.url(train.metrics.key)
    if not run.storage.exists(train.metrics.key):
        return none, (f"{where} is gone: the steps of round {train.round} are left out",)
    table, _ = read_table(run.storage.read_shard(train.metrics), where=where, rows=train.steps)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    wrong = [name for name, kind in frame.schema.items() if not kind.is_numeric()]
    if wrong or "step" not in frame.columns:
        raise DataError(
            f"{where} holds no figures of steps: expected a column 'step' and numbers, found "
            f"{dict(frame.schema)}. Restore the object"
        )
    return frame, ()
