"""`alarms`: what runs raise that are well, and which of ten planted faults are named.

Runs that are well: the quickstart's task and a chat task with 80 new tokens, each with five seeds
that have models of their own. What is in the folder of `--data` is kept and found again.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.faults.chat import ChatTask, Size
from benchmarks.faults.planted import FAULTS, Chat, Fault, Outcome, finished, run_chat
from benchmarks.kit.measure import Case, Result, Spread, spread
from pipeline.quickstart.folder import config_text, make_quickstart
from pipeline.quickstart.models import STUDENT, TEACHER, train_model
from pipeline.runs.alarms.judging import run_alarms

SEEDS, ROUNDS = 5, 3

QUICK_FAULTS = 2
"""Faults that are planted where it is to take seconds."""

SMALL = (
    *("rollout.prompts_per_round=256", "rollout.prompts_per_unit=128"),
    *("train.sequences_per_step=32", "eval.max_prompts=128"),
)
"""What keeps a round of the quickstart's task to seconds."""

RECIPES = {
    "teacher": replace(TEACHER, steps=160, batch=32, check_every=160),
    "student": replace(STUDENT, steps=240, check_every=240),
}
"""Models of the quickstart's task that know some of it: a third of the work of its own."""

CHAT_SIZE = Size(hidden=48, layers=2, steps=200, batch=24)
CHAT_STUDENT = 70
"""Steps of its training after which the chat task's student is taken."""


@dataclass(frozen=True)
class Seen:
    """What one run was, and what became of it."""

    name: str
    seed: int
    outcome: Outcome
    seconds: float
    fault: Fault | None = None

    @property
    def told(self) -> str:
        """Return what was told of it: alarms, and what opd ended it with."""
        names = [one.name for one in self.outcome.alarms]
        error = self.outcome.error
        return ", ".join([*names, *([f"{type(error).__name__}"] if error else [])]) or "nothing"

    @property
    def failure(self) -> str | None:
        """Return what is wrong with that; None where it is right."""
        where = f"{self.name}, seed {self.seed}: {self.told}"
        if self.fault is not None:
            return None if self.outcome.names(self.fault) else f"not named: {where}"
        return f"false alarm: {where}" if self.told != "nothing" else None


def run(*, quick: bool, seed: int, data: Path | None = None) -> Result:
    """Run what is well and what is ill, and look at what it raises.

    Args:
        quick: whether it is to take seconds: one chat that is well, and three faults.
        seed: the first of the seeds.
        data: a folder to keep models and runs in.
    """
    planted = FAULTS[: QUICK_FAULTS if quick else None]
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as own:
        runs = Path(own)
        models = runs / "models" if data is None else data.resolve()
        well, ill = list[Seen](), list[Seen]()
        for number in range(seed, seed + (1 if quick else SEEDS)):
            chat = _models(models / f"seed-{number}", number, quick=quick)
            well.append(_seen("chat", number, partial(_chat, chat, runs / f"chat-{number}")))
            if not quick:
                place = models / f"seed-{number}" / "addition"
                well.append(_seen("quickstart", number, partial(_quickstart, place, number)))
            for fault in planted if number == seed else ():
                act = partial(_chat, chat, runs / fault.name, fault=fault)
                ill.append(_seen(fault.name, number, act, fault))
    return result(well, ill)


def result(well: Sequence[Seen], ill: Sequence[Seen]) -> Result:
    """Return the figures of runs that are well and of runs that are ill."""
    failures = [words for one in (*well, *ill) if (words := one.failure) is not None]
    named = sum(one.failure is None for one in ill)
    figures = {
        "false_alarms": float(sum(len(one.outcome.alarms) for one in well)),
        "healthy_runs": float(len(well)),
        "faults_named": float(named),
        "faults_planted": float(len(ill)),
    }
    names = dict.fromkeys(one.name for one in (*well, *ill))
    cases = [_case(name, [one for one in (*well, *ill) if one.name == name]) for name in names]
    return Result(figures, cases, found={"failures": failures})


def _case(name: str, seen: Sequence[Seen]) -> Case:
    told = " / ".join(dict.fromkeys(one.told for one in seen))
    seconds: Spread = spread([one.seconds for one in seen])
    return {"case": name, "runs": len(seen), "told": told, "seconds": seconds}


def _seen(name: str, seed: int, act: Callable[[], Outcome], fault: Fault | None = None) -> Seen:
    begin = time.process_time()
    outcome = act()
    return Seen(name, seed, outcome, time.process_time() - begin, fault)


def _quickstart(folder: Path, seed: int) -> Outcome:
    for name, recipe in RECIPES.items():
        if not (folder / name).exists():
            train_model(recipe, folder / name, seed=seed, report=lambda step, total: None)
    text = config_text(root="store", seed=seed, rounds=ROUNDS, engine="hf")
    path = make_quickstart(folder, text, seed=seed, rounds=ROUNDS, report=lambda *_: None)
    return Outcome(run_alarms(finished(path, ROUNDS, SMALL)))


def _models(folder: Path, seed: int, *, quick: bool) -> Chat:
    if quick:
        size = Size(hidden=32, layers=1, steps=120, batch=24, learning_rate=6e-3)
        return Chat(folder / "quick", ChatTask(seed, 8.0, 20), 24, 64).prepare(size, 40)
    chat = Chat(folder / "chat", ChatTask(seed, 30.0, 78), new_tokens=80, prompts=64)
    return chat.prepare(CHAT_SIZE, CHAT_STUDENT)


def _chat(chat: Chat, folder: Path, fault: Fault | None = None) -> Outcome:
    rounds = ROUNDS if fault is None else max(2, fault.rounds)
    return run_chat(chat, folder, rounds=rounds, seed=chat.task.seed, fault=fault)
