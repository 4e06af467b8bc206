"""`objectives`: the quickstart's task learned by every objective, with five seeds each.

A seed has models and prompts of its own. All its objectives share a root, so that they sample the
same responses in round 0, whose scores are made once. What is in the folder of `--data` is kept and
found again; what is unfinished after `--minutes` is left out.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.kit.measure import Case, Result, spread
from benchmarks.kit.peerruns import make
from schemas.errors import ConfigError

ROUNDS = 14
"""As the quickstart's."""

SEEDS = 5
ENOUGH = 0.95
"""Share of the teacher's accuracy that an objective should reach with every seed."""

DEFAULT = "forward_kl"
"""What the quickstart and all profiles recommend."""

SAMPLED = ("score.k=16", "rollout.sample=16")
SLOW = "train.learning_rate=3e-4"
"""One sampled token a position is too noisy for the quickstart's learning rate."""

OBJECTIVES: dict[str, tuple[str, ...]] = {
    DEFAULT: ("loss.kind=forward_kl",),
    "reverse_kl": ("loss.kind=reverse_kl",),
    "reverse_kl, bucket": ("loss.kind=reverse_kl", "loss.estimator=bucket"),
    "reverse_kl, 16 student ids": ("loss.kind=reverse_kl", *SAMPLED),
    "jsd": ("loss.kind=jsd", "loss.beta=0.5"),
    "gkd, normalized": ("loss.kind=gkd", "loss.beta=0.5", "loss.normalized=true"),
    "skew_kl": ("loss.kind=skew_kl",),
    "skew_reverse_kl": ("loss.kind=skew_reverse_kl",),
    "tvd": ("loss.kind=tvd",),
    "alpha": ("loss.kind=alpha",),
    "policy_gradient": ("loss.kind=policy_gradient", SLOW),
    "policy_gradient, 16 student ids": ("loss.kind=policy_gradient", *SAMPLED),
}
"""Objective → what its run says that the quickstart's does not; k is 4 where none is named."""

QUICK = (DEFAULT, "reverse_kl, 16 student ids")
QUICK_CHANGES = (
    *("rollout.prompts_per_round=16", "rollout.prompts_per_unit=16"),
    *("train.epochs=1", "eval.max_prompts=16"),
)

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t of a mean's 95 % interval, by the number of seeds."""


@dataclass(frozen=True)
class Learned:
    """What became of one objective with one seed, by round."""

    accuracy: tuple[float, ...]
    """Of the student that the round trained."""
    reverse_kl: tuple[float, ...]
    """Nats per token of the student that sampled in the round."""
    teacher: float

    @property
    def of_teacher(self) -> float:
        """Return the last student's accuracy as a share of the teacher's."""
        return self.accuracy[-1] / self.teacher if self.teacher else 0.0


def run(
    *, quick: bool, seed: int, data: Path | None = None, minutes: float | None = None
) -> Result:
    """Measure every objective, all of the first seed before those of the next one.

    Args:
        quick: whether it is to take seconds: two objectives and untaught models.
        seed: the first of the seeds.
        data: a folder to keep models and runs in, and to go on from.
        minutes: after which nothing is begun any more; what is done is told.

    Raises:
        ConfigError: nothing is done in the folder, and no time is left to do it in.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    seeds = range(seed, seed + (1 if quick else SEEDS))
    names = QUICK if quick else tuple(OBJECTIVES)
    found: dict[str, list[Learned]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as own:
        folder = Path(own) if data is None else data.resolve()
        for number, name in product(seeds, names):
            learned = _learned(folder / f"seed-{number}", name, number, quick=quick, until=until)
            found[name] += [] if learned is None else [learned]
    measured = {name: seeds for name, seeds in found.items() if seeds}
    if DEFAULT not in measured:
        raise ConfigError(f"{folder} has no finished run of {DEFAULT}: give it more --minutes")
    return result(measured)


def result(found: Mapping[str, Sequence[Learned]]) -> Result:
    """Return the figures of objectives: how many reach the teacher, and the default's least."""
    objectives = [objective(name, seeds) for name, seeds in found.items()]
    reach = sum(min(one["of_teacher"]) >= ENOUGH for one in objectives)
    figures = {
        "objectives_that_reach": float(reach),
        "objectives_measured": float(len(objectives)),
        "fewest_seeds": float(min(map(len, found.values()))),
        "default_least": min(one.of_teacher for one in found[DEFAULT]),
    }
    cases = [_case(name, seeds) for name, seeds in found.items()]
    return Result(figures, cases, nested={"objectives": objectives})


def objective(name: str, seeds: Sequence[Learned]) -> dict[str, Any]:
    """Return what is told of one objective: the end of each seed, and its way by round."""
    return {
        "name": name,
        "accuracy": [_short(one.accuracy[-1]) for one in seeds],
        "of_teacher": [_short(one.of_teacher) for one in seeds],
        "accuracy_by_round": intervals([one.accuracy for one in seeds]),
        "reverse_kl_by_round": intervals([one.reverse_kl for one in seeds]),
    }


def intervals(rows: Sequence[Sequence[float]]) -> list[dict[str, float | None]]:
    """Return mean and half a 95 % interval over seeds, of each round; None of a single seed."""
    found: list[dict[str, float | None]] = []
    for values in zip(*rows, strict=True):
        count = len(values)
        half = T_95[count] * stdev(values) / count**0.5 if count > 1 else None
        found.append(
            {"mean": _short(mean(values)), "plus_minus": None if half is None else _short(half)}
        )
    return found


def _case(name: str, seeds: Sequence[Learned]) -> Case:
    return {
        "case": name,
        "seeds": len(seeds),
        "accuracy": spread([one.accuracy[-1] for one in seeds]),
        "of_teacher": spread([one.of_teacher for one in seeds]),
        "last_reverse_kl": spread([one.reverse_kl[-1] for one in seeds]),
    }


def _learned(
    folder: Path, name: str, seed: int, *, quick: bool, until: float | None
) -> Learned | None:
    """Return what became of an objective, which is learned now if there is time; else None."""
    if not (folder / "run.toml").exists():
        if _is_late(until):
            return None
        make(str(folder), str(seed), *(["quick"] if quick else []), rounds=ROUNDS)
    from cli.options import load_run

    rounds = 2 if quick else ROUNDS
    words = [f"run.name={_slug(name)}", f"run.rounds={rounds}", *OBJECTIVES[name]]
    run = load_run(str(folder / "run.toml"), [*words, *(QUICK_CHANGES if quick else ())])
    for _ in _stages(run, rounds) if not _is_late(until) else ():
        if _is_late(until):
            break
    return _of_run(run, rounds)


def _stages(run: Any, rounds: int) -> Iterator[object]:
    """Do what is left of a run, stage by stage."""
    from cli.output import make_progress
    from pipeline.stages.rounds import run_rounds
    from pipeline.stages.train import run_train

    progress = make_progress(as_json=True)
    return run_rounds(
        run, rounds, train=lambda index: run_train(run, index, progress=progress), progress=progress
    )


def _of_run(run: Any, rounds: int) -> Learned | None:
    """Return what a run has learned, None where it is not at its end."""
    from pipeline.runs.status import run_status

    status = run_status(run)
    accuracy = [one.accuracy for one in status.rounds if one.accuracy is not None]
    divergence = [one.reverse_kl for one in status.rounds if one.reverse_kl is not None]
    if status.teacher_accuracy is None or not len(accuracy) == len(divergence) == rounds:
        return None
    return Learned(tuple(accuracy), tuple(divergence), status.teacher_accuracy)


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").replace("_", "-")


def _is_late(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _short(value: float) -> float:
    return float(f"{value:.4g}")
