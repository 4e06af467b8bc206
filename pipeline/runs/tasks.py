"""What is due: the first round that is not finished, and what a scheduler starts for a round."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.runs.gate import judge
from pipeline.runs.run import Run, check_run
from schemas.errors import ConfigError
from schemas.records.training import TrainManifest

Call = dict[str, str | int]
"""One call of a stage: `worker` numbers it, `teacher` is an option of `opd score` or `rollout`."""


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
class RoundTasks:
    """The calls of one round; all lists are empty where it is not due."""

    state: Literal["due", "stopped", "waiting", "outside"]
    reason: str
    baseline: list[Call] = field(default_factory=list)
    rollout: list[Call] = field(default_factory=list)
    grade: list[Call] = field(default_factory=list)
    score: list[Call] = field(default_factory=list)
    train: list[Call] = field(default_factory=list)
    eval: list[Call] = field(default_factory=list)


def round_tasks(
    run: Run, round_index: int, *, rounds: range, workers: int, teachers: Sequence[str] = ()
) -> RoundTasks:
    """Return what to start for a round, from what is committed by now.

    A round that is finished is due as well: its stages return at once.

    Args:
        run: the run.
        round_index: the round.
        rounds: rounds that are asked for.
        workers: calls of rollout, and of score for each teacher, that share the units; 0 for none.
        teachers: score with these only; the round is trained when they are all.

    Raises:
        ConfigError: there is no such teacher.
        IdentityError: the run began with other settings.
        RegressionError: the round before made the student worse than `[gate]` allows.
    """
    check_run(run)
    names = list(run.config.teachers)
    unknown = [name for name in teachers if name not in names]
    if unknown:
        raise ConfigError(f"there is no teacher {unknown[0]!r}; known: {', '.join(names)}")
    if run.config.is_supervised and workers:
        raise ConfigError(
            "loss.kind = 'sft' is a baseline that `opd run` makes on one machine: schedulers have "
            "no tasks for it"
        )
    if round_index not in rounds:
        asked = f"rounds {rounds.start} to {rounds.stop - 1} are" if rounds else "none is"
        return RoundTasks("outside", f"{asked} asked for")
    if round_index and run.train(round_index - 1) is None:
        return RoundTasks("waiting", f"round {round_index - 1} is not trained")
    if round_index and run.config.gate is not None:
        verdict = judge(run, round_index - 1)
        if verdict.decision == "stop":
            return RoundTasks("stopped", verdict.reason)
    mine = [name for name in names if name in teachers] or names
    shares: list[Call] = [{"worker": index} for index in range(workers)]
    answers: list[Call] = [
        {"teacher": name, **share} for name in run.config.answering for share in shares
    ]
    one: list[Call] = [{"worker": 0}] if workers else []
    whole = set(mine) == set(names)
    return RoundTasks(
        state="due",
        reason="",
        baseline=one if round_index == 0 and run.config.eval is not None else [],
        rollout=shares + answers,
        grade=one if run.config.reward is not None else [],
        score=[{"teacher": name, **share} for name in mine for share in shares],
        train=one if whole else [],
        eval=one if whole and wants_eval(run, round_index, rounds.stop) else [],
    )
