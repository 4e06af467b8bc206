"""Where a run stands, from its manifests alone; loads no model and no torch."""

from dataclasses import dataclass, field

from pipeline.runs.gate import mean_reverse_kl
from pipeline.runs.reporting import stage_seconds
from pipeline.runs.run import Run, changed_settings
from pipeline.store.commit import committed_units
from schemas.keys import GRADE, STUDENT, score_stage, teacher_label
from schemas.records.rewards import RewardManifest
from schemas.records.runs import EvalManifest, RolloutPlan
from schemas.records.training import TrainManifest


def next_round(run: Run, rounds: int) -> int:
    """Return the first round that is not finished, by bisection: finished rounds come first."""
    low, high = 0, rounds
    while low < high:
        middle = (low + high) // 2
        if _is_finished(run, middle, rounds):
            low = middle + 1
        else:
            high = middle
    return low


def wants_eval(run: Run, round_index: int, rounds: int) -> bool:
    """Return whether a round is followed by an evaluation."""
    section = run.config.eval
    if section is None:
        return False
    return (round_index + 1) % section.every_rounds == 0 or round_index + 1 == rounds


def _is_finished(run: Run, round_index: int, rounds: int) -> bool:
    trained: TrainManifest | None = run.train(round_index)
    if trained is None:
        return False
    key = run.manifest_key(round_index, "eval")
    return not wants_eval(run, round_index, rounds) or run.storage.exists(key)


@dataclass(frozen=True)
class StageStatus:
    """One stage of one round."""

    state: str
    """`done`, `partial`, `missing`, or `off` where the configuration does without it."""
    units_done: int = 0
    units: int | None = None
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RoundStatus:
    """One round that has begun."""

    round: int
    stages: dict[str, StageStatus]
    accuracy: float | None = None
    reverse_kl: float | None = None
    teacher_tokens: int = 0
    reused_rows: int = 0
    reward: float | None = None
    """Mean of the rewards."""
    without_reward: dict[str, int] = field(default_factory=dict)
    """Rows that have none, by kind of fault."""


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


def run_status(run: Run, only: int | None = None) -> RunStatus:
    """Return where every round that has begun stands, or one round alone.

    `accuracy` of a round is of the student it trained; `reverse_kl` is of the student that sampled
    in it, on its own samples, in nats per token.
    """
    rounds = []
    for index in range(run.config.run.rounds) if only is None else [only]:
        plan = run.plan(index)
        if plan is None:
            break
        rounds.append(_round(run, index, plan))
    return RunStatus(
        run=run.name,
        root=run.storage.root,
        rounds_planned=run.config.run.rounds,
        teacher_accuracy=_accuracy(run.baseline(teacher_label(run.config.default_teacher))),
        initial_accuracy=_accuracy(run.baseline(STUDENT)),
        rounds=rounds,
        changed=changed_settings(run),
    )


def _round(run: Run, index: int, plan: RolloutPlan) -> RoundStatus:
    seconds = stage_seconds(run, index)
    scores = [run.score(index, name) for name in run.config.teachers]
    done = [s for s in scores if s is not None]
    graded, rewards = run.evaluation(index), run.rewards(index)
    return RoundStatus(
        round=index,
        stages={
            "rollout": _rollout(run, index, plan, seconds.get("rollout", 0.0)),
            "grade": _rewarded(run, index, plan, rewards, seconds=seconds.get("grade", 0.0)),
            "score": _score(run, index, plan, seconds.get("score", 0.0)),
            "train": _train(run, index, seconds.get("train", 0.0)),
            "eval": _graded(run, graded, seconds.get("eval", 0.0)),
        },
        accuracy=_accuracy(graded),
        reverse_kl=mean_reverse_kl(done),
        teacher_tokens=sum(s.teacher_tokens for s in done),
        reused_rows=sum(s.reused_rows for s in done),
        reward=rewards.mean if rewards else None,
        without_reward=rewards.faults if rewards else {},
    )


def _rollout(run: Run, index: int, plan: RolloutPlan, seconds: float) -> StageStatus:
    manifest = run.rollout(index)
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, "rollout")))
    return StageStatus("partial" if found else "missing", found, plan.units, 0, seconds)


def _rewarded(
    run: Run, index: int, plan: RolloutPlan, manifest: RewardManifest | None, *, seconds: float
) -> StageStatus:
    if manifest is not None:
        units = len(manifest.units)
        return StageStatus("done", units, units, manifest.tokens, seconds)
    if run.config.reward is None:
        return StageStatus("off", seconds=seconds)
    found = len(committed_units(run.storage, run.stage_folder(index, GRADE)))
    return StageStatus("partial" if found else "missing", found, plan.units, 0, seconds)


def _score(run: Run, index: int, plan: RolloutPlan, seconds: float) -> StageStatus:
    units, found, tokens = plan.units * len(run.config.teachers), 0, 0
    for name in run.config.teachers:
        manifest = run.score(index, name)
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


def _accuracy(graded: EvalManifest | None) -> float | None:
    return None if graded is None else graded.accuracy
