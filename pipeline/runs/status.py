"""Where a run stands, from its manifests alone; loads no model and no torch."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from pipeline.runs.curriculum.rounds import shown
from pipeline.runs.forecast import forecast
from pipeline.runs.gate import mean_reverse_kl
from pipeline.runs.grades.intervals import accuracy_interval
from pipeline.runs.leases import Holder, holders
from pipeline.runs.reporting import last_failure, stage_seconds
from pipeline.runs.run import Run, changed_settings
from pipeline.runs.tasks import wants_eval
from pipeline.store.commit import committed_units
from schemas.keys import (
    GRADE,
    SAMPLES,
    SCORE,
    STUDENT,
    sample_stage,
    score_stage,
    teacher_label,
)
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


@dataclass(frozen=True)
class RoundStatus:
    """One round that has begun."""

    round: int
    stages: dict[str, StageStatus]
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    """Ends of its 95 % interval."""
    pass_at: dict[str, float] = field(default_factory=dict)
    """k → how often one of k responses of a prompt is right; empty with one response."""
    reverse_kl: float | None = None
    teacher_tokens: int = 0
    reused_rows: int = 0
    reward: float | None = None
    """Mean of the rewards."""
    without_reward: dict[str, int] = field(default_factory=dict)
    """Rows that have none, by kind of fault."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """What the round has of its own by `[schedule]`, by key."""


@dataclass(frozen=True)
class RunStatus:
    """A whole run."""

    run: str
    root: str
    rounds_planned: int
    teacher_accuracy: float | None = None
    initial_accuracy: float | None = None
    rounds: list[RoundStatus] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Settings that differ from those the run began with: every stage would refuse them."""
    next_round: int | None = None
    """First round that is not finished; None where all are, or one round alone was asked for."""
    next_stage: str | None = None
    """First stage of that round that is not done."""
    next_failure: str | None = None
    """Why the next round could not begin, where that was tried."""
    seconds_left: float | None = None
    """Of all workers, at the rates of the last scored round; None before there is one."""

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left to do of what was asked for."""
        stages = [stage.state for one in self.rounds for stage in one.stages.values()]
        begun = bool(stages) and set(stages) <= {"done", "off"}
        return begun and self.next_round is None


AT_ONCE = 16
"""Rounds whose records are read at once."""


def run_status(run: Run, only: int | None = None) -> RunStatus:
    """Return where every round that has begun stands, or one round alone.

    `accuracy` of a round is of the student it trained; `reverse_kl` is of the student that sampled
    in it, on its own samples, in nats per token.
    """
    rounds = _begun(run) if only is None else _some(run, [only])
    status = RunStatus(
        run=run.name,
        root=run.storage.root,
        rounds_planned=run.config.run.rounds,
        teacher_accuracy=_accuracy(run.baseline(teacher_label(run.config.default_teacher))),
        initial_accuracy=_accuracy(run.baseline(STUDENT)),
        rounds=rounds,
        changed=changed_settings(run),
    )
    return status if only is not None else _with_next(run, status)


def _begun(run: Run) -> list[RoundStatus]:
    found: list[RoundStatus] = []
    for start in range(0, run.config.run.rounds, AT_ONCE):
        asked = range(start, min(start + AT_ONCE, run.config.run.rounds))
        some = _some(run, asked)
        found += some
        if len(some) < len(asked):
            break
    return found


def _some(run: Run, rounds: Sequence[int]) -> list[RoundStatus]:
    """Return where some rounds stand, up to the first that has not begun."""

    def read(index: int) -> RoundStatus | None:
        plan, samples = run.plan(index), _samples(run, index)
        if plan is None and samples.state == "off":
            return None
        return _round(run, index, plan, samples)

    with ThreadPoolExecutor(AT_ONCE, "opd-status") as pool:
        found = list(pool.map(read, rounds))
    return [one for one in takewhile(lambda one: one is not None, found) if one is not None]


def _with_next(run: Run, status: RunStatus) -> RunStatus:
    """Return a status that says what comes next, and how long all that is left takes."""
    planned = status.rounds_planned
    todo = [one for one in status.rounds if _next_stage(run, one, planned) is not None]
    first = todo[0].round if todo else len(status.rounds)
    if first >= planned:
        return status
    ahead = forecast(run, first=first, rounds=planned)
    failed = None if todo else last_failure(run, first, "rollout")
    return replace(
        status,
        next_round=first,
        next_stage=_next_stage(run, todo[0], planned) if todo else "rollout",
        next_failure=failed.message if failed else None,
        seconds_left=sum(ahead.seconds.values()) if ahead.seconds else None,
    )


def _next_stage(run: Run, one: RoundStatus, planned: int) -> str | None:
    """Return the first stage of a round that is not done, None where the round is finished."""
    due = [name for name in one.stages if name != "eval" or wants_eval(run, one.round, planned)]
    return next((name for name in due if one.stages[name].state not in ("done", "off")), None)


def _round(run: Run, index: int, plan: RolloutPlan | None, samples: StageStatus) -> RoundStatus:
    seconds = stage_seconds(run, index)
    units = None if plan is None else plan.units
    scores = {name: run.score(index, name) for name in run.config.teachers}
    done = [s for s in scores.values() if s is not None]
    graded, rewards = run.evaluation(index), run.rewards(index)
    stages = {
        "rollout": _rollout(run, index, plan, seconds.get("rollout", 0.0)),
        "samples": replace(samples, seconds=seconds.get(SAMPLES, 0.0)),
        "grade": _rewarded(run, index, units, rewards, seconds=seconds.get("grade", 0.0)),
        "score": _score(run, index, units, scores, seconds=seconds.get("score", 0.0)),
        "train": _train(run, index, seconds.get("train", 0.0)),
        "eval": _graded(run, graded, seconds.get("eval", 0.0)),
    }
    interval = _interval(run, graded)
    return RoundStatus(
        round=index,
        stages={name: _looked_at(run, index, name, stage) for name, stage in stages.items()},
        accuracy=_accuracy(graded),
        accuracy_low=interval[0],
        accuracy_high=interval[1],
        pass_at=dict(graded.pass_at) if graded else {},
        reverse_kl=mean_reverse_kl(done),
        teacher_tokens=sum(s.teacher_tokens for s in done),
        reused_rows=sum(s.reused_rows for s in done),
        reward=rewards.mean if rewards else None,
        without_reward=rewards.faults if rewards else {},
        schedule=shown(plan.schedule) if plan else {},
    )


def _looked_at(run: Run, index: int, name: str, stage: StageStatus) -> StageStatus:
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


def _samples(run: Run, index: int) -> StageStatus:
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


def _rollout(run: Run, index: int, plan: RolloutPlan | None, seconds: float) -> StageStatus:
    if run.config.is_supervised:
        return StageStatus("off", seconds=seconds)
    manifest = run.rollout(index, plan=plan)
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, "rollout")))
    planned = None if plan is None else plan.units
    return StageStatus("partial" if found else "missing", found, planned, 0, seconds)


def _rewarded(
    run: Run, index: int, units: int | None, manifest: RewardManifest | None, *, seconds: float
) -> StageStatus:
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    if run.config.reward is None:
        return StageStatus("off", seconds=seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, GRADE)))
    return StageStatus("partial" if found else "missing", found, units, 0, seconds)


def _score(
    run: Run,
    index: int,
    planned: int | None,
    scores: Mapping[str, ScoreManifest | None],
    *,
    seconds: float,
) -> StageStatus:
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


def _train(run: Run, index: int, seconds: float) -> StageStatus:
    manifest = run.train(index)
    if manifest is None:
        saved = committed_units(run.storage, run.stage_folder(index, "train"))
        return StageStatus("partial" if saved else "missing", seconds=seconds)
    return StageStatus("done", manifest.steps, manifest.steps, manifest.tokens, seconds)


def _graded(run: Run, manifest: EvalManifest | None, seconds: float) -> StageStatus:
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    return StageStatus("off" if run.config.eval is None else "missing", seconds=seconds)


def _interval(run: Run, graded: EvalManifest | None) -> tuple[float | None, float | None]:
    if graded is None:
        return None, None
    samples = run.config.eval.samples_per_prompt if run.config.eval else graded.samples
    found = accuracy_interval(graded, samples=samples)
    return found.low, found.high


def _accuracy(graded: EvalManifest | None) -> float | None:
    return None if graded is None else graded.accuracy
