"""Where one stage of one round stands, from its manifest or its commits, leases and failure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.runs.leases import Holder, holders
from pipeline.runs.reporting import last_failure
from pipeline.runs.run import Run
from pipeline.store.commit import committed_units
from schemas.keys import GRADE, SAMPLES, SCORE, sample_stage, score_stage
from schemas.records.rewards import RewardManifest
from schemas.records.runs import EvalManifest, RolloutPlan
from schemas.records.scores import ScoreManifest


@dataclass(frozen=True)
class StageStatus:
    """One stage of one round."""

    state: str
    """`done`, `partial`, `missing`, or `off` where the configuration does without it."""
    units_done: int = 0
    units: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    workers: list[Holder] = field(default_factory=list)
    """Who works on it now, or left a lease behind."""
    failure: str | None = None
    """Why its last call that failed did so, where it is not done."""

    @property
    def is_running(self) -> bool:
        """Return whether somebody works on it."""
        return any(not worker.gone for worker in self.workers)


def with_workers(run: Run, index: int, name: str, stage: StageStatus) -> StageStatus:
    """Return a stage with who works on it and why it failed, where it is not done."""
    if stage.state in ("done", "off"):
        return stage
    by_teacher = {SCORE: score_stage, SAMPLES: sample_stage}.get(name)
    folders = [by_teacher(t) for t in run.config.teachers] if by_teacher else [name]
    failed = last_failure(run, index, name)
    return replace(
        stage,
        workers=[h for f in folders for h in holders(run.storage, run.stage_folder(index, f))],
        failure=failed.message if failed else None,
    )


def samples_status(run: Run, index: int) -> StageStatus:
    """Return where the teachers stand that sample in a round."""
    plans = {name: run.plan(index, name) for name in run.config.teachers}
    planned = {name: plan for name, plan in plans.items() if plan is not None}
    if not planned:
        return StageStatus("off")
    found, tokens = 0, 0
    for name in planned:
        manifest = run.rollout(index, name)
        if manifest is not None:
            found, tokens = found + len(manifest.units), tokens + manifest.tokens
        else:
            folder = run.stage_folder(index, sample_stage(name))
            found += len(committed_units(run.storage, folder))
    units = sum(plan.units for plan in planned.values())
    state = "done" if found == units else "partial" if found else "missing"
    return StageStatus(state, found, units, tokens)


def rollout_status(run: Run, index: int, plan: RolloutPlan | None, seconds: float) -> StageStatus:
    """Return where the student's sampling of a round stands."""
    if run.config.is_supervised:
        return StageStatus("off", seconds=seconds)
    manifest = run.rollout(index, plan=plan)
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, "rollout")))
    planned = None if plan is None else plan.units
    return StageStatus("partial" if found else "missing", found, planned, 0, seconds)


def rewarded_status(
    run: Run, index: int, units: int | None, manifest: RewardManifest | None, *, seconds: float
) -> StageStatus:
    """Return where the rewards of a round stand."""
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    if run.config.reward is None:
        return StageStatus("off", seconds=seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, GRADE)))
    return StageStatus("partial" if found else "missing", found, units, 0, seconds)


def score_status(
    run: Run,
    index: int,
    planned: int | None,
    scores: Mapping[str, ScoreManifest | None],
    *,
    seconds: float,
) -> StageStatus:
    """Return where the teachers' scores of a round stand."""
    if run.config.is_supervised:
        return StageStatus("off", seconds=seconds)
    units, found, tokens = None if planned is None else planned * len(scores), 0, 0
    for name, manifest in scores.items():
        if manifest is not None:
            found, tokens = found + len(manifest.units), tokens + manifest.tokens
        else:
            found += len(committed_units(run.storage, run.stage_folder(index, score_stage(name))))
    state = "done" if tokens and found == units else "partial" if found else "missing"
    return StageStatus(state, found, units, tokens, seconds)


def train_status(run: Run, index: int, seconds: float) -> StageStatus:
    """Return where the training of a round stands."""
    manifest = run.train(index)
    if manifest is None:
        saved = committed_units(run.storage, run.stage_folder(index, "train"))
        return StageStatus("partial" if saved else "missing", seconds=seconds)
    return StageStatus("done", manifest.steps, manifest.steps, manifest.tokens, seconds)


def graded_status(run: Run, manifest: EvalManifest | None, seconds: float) -> StageStatus:
    """Return where the evaluation of a round stands."""
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    return StageStatus("off" if run.config.eval is None else "missing", seconds=seconds)
