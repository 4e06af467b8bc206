"""Faults that alarms must name, planted in small runs of the chat task: in models, files, engines.

Owns: what is done to a run to make it ill, and which alarms may say so. Promises: a fault is in the
configuration, in a file that it names, or in the engine, never in what a run has stored.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.chat import (
    END,
    LETTERS,
    ChatTask,
    Size,
    end_with,
    train_models,
    write_prompts,
)
from benchmarks.faults.engines import (
    Cooling,
    CoolingInSilence,
    Forgetting,
    Opener,
    Shuffling,
    ShufflingMany,
    behind,
    never_reloading,
    wrapped,
)
from pipeline.runs.alarms.judging import Alarm, run_alarms
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.errors import OpdError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """A chat task with its models, in a folder: what runs are made of."""

    folder: Path
    task: ChatTask
    new_tokens: int
    prompts: int
    """Prompts of a round."""

    def prepare(self, size: Size, early: int) -> "Chat":
        """Make the models, unless they are there.

        Args:
            size: of all of them.
            early: steps after which the student is taken; the teacher is after 3/4 of all steps,
                and one that thinks before it answers is at the end.
        """
        late = 3 * size.steps // 4
        steps = {early: "student", late: "teacher", size.steps: "thinking"}
        if not (self.folder / "thinking").exists():
            folders = {step: self.folder / name for step, name in steps.items()}
            train_models(self.task, size, folders, thinking_after=late)
        return self


@dataclass(frozen=True)
class Fault:
    """One fault, how it is planted, and what becomes of it."""

    name: str
    alarms: tuple[str, ...]
    """Those that name it: one of them must be raised. None where a run ends before."""
    changes: Settings = field(default_factory=dict)
    """Dotted keys of run.toml and their values."""
    files: Callable[[Chat, Path], None] = lambda chat, folder: None
    """Changes files of a run's folder, before it begins."""
    opener: Callable[[Opener], Opener] = lambda opener: opener
    """Stands between opd and its engine."""
    refused: str = ""
    """What opd says as it ends the run by itself, where it does."""
    rounds: int = 1
    """Rounds that it takes to show."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run of a few rounds."""

    alarms: list[Alarm]
    error: OpdError | None = None
    """What opd ended it with before its time."""

    def names(self, fault: Fault) -> bool:
        """Return whether a fault is named: by an alarm, and by opd's own end where it has one."""
        raised = not fault.alarms or any(one.name in fault.alarms for one in self.alarms)
        return raised and fault.refused in str(self.error or "")


def run_chat(
    chat: Chat, folder: Path, *, rounds: int, seed: int = 0, fault: Fault | None = None
) -> Outcome:
    """Run rounds of the chat task in a new folder, ill or well, and return what became of them."""
    ill = Fault("none", ()) if fault is None else fault
    _write(chat, folder, seed, rounds, ill.changes)
    ill.files(chat, folder)
    config, error = folder / "run.toml", None
    with behind(ill.opener):
        try:
            finished(config, rounds)
        except OpdError as refusal:
            error = refusal
    return Outcome(run_alarms(open_run(load_config(config))), error)


def finished(config: Path, rounds: int, overrides: Sequence[str] = ()) -> Run:
    """Return a run after so many rounds."""
    from cli.options import load_run
    from cli.output import make_progress
    from pipeline.stages.rounds import run_rounds
    from pipeline.stages.train import run_train

    run, progress = load_run(str(config), list(overrides)), make_progress(as_json=True)
    for _ in run_rounds(
        run, rounds, train=lambda index: run_train(run, index, progress=progress), progress=progress
    ):
        pass
    return run


def _write(chat: Chat, folder: Path, seed: int, rounds: int, changes: Settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    questions = chat.task.questions(chat.prompts * rounds, seed)
    write_prompts(folder / "prompts.jsonl", questions, [{} for _ in questions])
    settings = {
        "run.name": "chat",
        "run.root": "store",
        "run.seed": seed,
        "run.rounds": rounds,
        "student.model": str(chat.folder / "student"),
        "teachers.main.model": str(chat.folder / "teacher"),
        "prompts.train": "prompts.jsonl",
        "prompts.max_tokens": 48,
        "rollout.prompts_per_round": chat.prompts,
        "rollout.max_new_tokens": chat.new_tokens,
        "rollout.prompts_per_unit": chat.prompts // 2,
        "score.k": 4,
        "train.learning_rate": LEARNING_RATE,
        "train.sequences_per_step": max(8, chat.prompts // 8),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**settings, **changes}.items()]
    text = "\n".join(['base = "opd:cpu@1"', *lines])
    (folder / "run.toml").write_text(text + "\n", encoding="utf-8")


# --- in files ---


def _thinking(chat: Chat, folder: Path) -> None:
    (folder / "teacher").symlink_to(chat.folder / "thinking")


def _student(chat: Chat, folder: Path) -> None:
    (folder / "teacher").symlink_to(chat.folder / "student")


def _other_end(chat: Chat, folder: Path) -> None:
    shutil.copytree(chat.folder / "teacher", folder / "teacher")
    end_with(folder / "teacher", END)


def _cut_prompts(chat: Chat, folder: Path, most: int = 30) -> None:
    path = folder / "prompts.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [one["messages"][0]["content"][0] for one in lines]
    source = np.random.default_rng(0)
    rest = [
        "".join(source.choice(list(LETTERS), n)) for n in source.integers(5, 2 * most, len(asked))
    ]
    long = [(topic + more)[:most] for topic, more in zip(asked, rest, strict=True)]
    write_prompts(path, long, [{} for _ in long])


def _heavy_domain(chat: Chat, folder: Path) -> None:
    questions = chat.task.questions(2 * chat.prompts, 0)
    kinds = [
        {"domain": f"d{n % 4}", "weight": 1.0 if n % 4 else 20.0} for n in range(len(questions))
    ]
    write_prompts(folder / "prompts.jsonl", questions, kinds)


LEARNING_RATE = 1e-3
OWN_TEACHER = {"teachers.main.model": "teacher"}
ALONE = {"run.keep_models": False}
"""Lets each stage open what it runs, as stages on machines of their own do."""

FAST = {"train.learning_rate": 100 * LEARNING_RATE}

FAULTS = (
    Fault("wrong template", ("template_strange",), OWN_TEACHER, files=_thinking),
    Fault("wrong end token", ("end_token_lost",), OWN_TEACHER, files=_other_end),
    Fault(
        "scores shuffled between rows",
        ("scores_shuffled",),
        opener=wrapped("score", ShufflingMany),
        refused="total teacher mass is not 1",
    ),
    Fault(
        "scores shuffled between any rows",
        (),
        opener=wrapped("score", Shuffling),
        refused="scored alone, together and in another order, differ",
    ),
    Fault("teacher is the student", ("teacher_is_student",), OWN_TEACHER, files=_student),
    Fault(
        "student not reloaded",
        (),
        ALONE,
        opener=never_reloading,
        refused="(rollout_kl) away",
        rounds=2,
    ),
    Fault(
        "student not reloaded, and that allowed",
        ("rollout_kl",),
        {**ALONE, "train.max_rollout_kl": 10.0},
        opener=never_reloading,
        rounds=2,
    ),
    Fault("learning rate times 100", ("left_its_samples", "further_away"), FAST, rounds=2),
    Fault("prompts cut", ("prompts_cut",), files=_cut_prompts),
    Fault(
        "another temperature, not told",
        ("sampling_not_as_told",),
        opener=wrapped("sample", CoolingInSilence),
    ),
    Fault("another temperature", (), opener=wrapped("sample", Cooling), refused="its draws are"),
    Fault("one domain times 20", ("one_domain",), files=_heavy_domain),
    Fault(
        "candidates dropped",
        (),
        {"rollout.candidates": 4},
        opener=wrapped("sample", Forgetting),
        refused="does not hold 4 candidates",
    ),
)
"""Ten faults; some stand twice, where it takes more to get past what opd itself refuses."""
