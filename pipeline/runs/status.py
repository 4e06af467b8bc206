"""Where a run stands, from its manifests alone; loads no model and no torch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from pipeline.runs.alarms.judging import Alarm, run_alarms
from pipeline.runs.curriculum.rounds import shown
from pipeline.runs.forecast import forecast
from pipeline.runs.gate import measured_gap
from pipeline.runs.grades.intervals import accuracy_interval
from pipeline.runs.reporting import last_failure, stage_seconds
from pipeline.runs.run import Run, changed_settings
from pipeline.runs.standing.stages import (
    StageStatus,
    graded_status,
    rewarded_status,
    rollout_status,
    samples_status,
    score_status,
    train_status,
    with_workers,
)
from pipeline.runs.tasks import wants_eval
from schemas.keys import (
    SAMPLES,
    STUDENT,
    teacher_label,
)
from schemas.records.runs import EvalManifest, RolloutPlan


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
    reverse_kl_error: float | None = None
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
    alarms: list[Alarm] = field(default_factory=list)
    """What looks wrong in the first and the newest of the rounds, the worst first."""
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
        alarms=run_alarms(run, [one.round for one in rounds]),
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
        plan, samples = run.plan(index), samples_status(run, index)
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
        "rollout": rollout_status(run, index, plan, seconds.get("rollout", 0.0)),
        "samples": replace(samples, seconds=seconds.get(SAMPLES, 0.0)),
        "grade": rewarded_status(run, index, units, rewards, seconds=seconds.get("grade", 0.0)),
        "score": score_status(run, index, units, scores, seconds=seconds.get("score", 0.0)),
        "train": train_status(run, index, seconds.get("train", 0.0)),
        "eval": graded_status(run, graded, seconds.get("eval", 0.0)),
    }
    interval, gap = _interval(run, graded), measured_gap(run, index, list(scores.values()))
    return RoundStatus(
        round=index,
        stages={name: with_workers(run, index, name, stage) for name, stage in stages.items()},
        accuracy=_accuracy(graded),
        accuracy_low=interval[0],
        accuracy_high=interval[1],
        pass_at=dict(graded.pass_at) if graded else {},
        reverse_kl=None if gap is None else gap.value,
        reverse_kl_error=None if gap is None else gap.error,
        teacher_tokens=sum(s.teacher_tokens for s in done),
        reused_rows=sum(s.reused_rows for s in done),
        reward=rewards.mean if rewards else None,
        without_reward=rewards.faults if rewards else {},
        schedule=shown(plan.schedule) if plan else {},
    )


def _accuracy(graded: EvalManifest | None) -> float | None:
    return None if graded is None else graded.accuracy


def _interval(run: Run, graded: EvalManifest | None) -> tuple[float | None, float | None]:
    if graded is None:
        return None, None
    samples = run.config.eval.samples_per_prompt if run.config.eval else graded.samples
    found = accuracy_interval(graded, samples=samples)
    return found.low, found.high
