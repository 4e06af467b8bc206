"""`peers`: rounds of `opd run` against TRL's `DistillationTrainer`, on the quickstart's files.

Both sides sample 64 sequences for each step, learn them once by forward KL with the same optimizer,
and are graded by one grader. A step's cost is marginal: CPU seconds of a long run minus those of a
short one, by its steps. TRL scores and samples for every step, opd for every round of ten.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.kit.measure import Case, Result, spread
from benchmarks.kit.trltrainer import MAX_GRAD_NORM, Recipe
from schemas.errors import ConfigError

REPOSITORY = Path(__file__).parent.parent
PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
"""Of the environment that TRL is in."""

STEPS_PER_ROUND = 10
UNIT_PROMPTS = 320
"""Prompts of a unit of rollout, as in the quickstart."""

CONFIG = """\
run = {{ name = "peer", root = "{root}", seed = {recipe.seed}, rounds = {rounds} }}
student = {{ model = "{recipe.folder}/student" }}
teachers.main = {{ model = "{recipe.folder}/teacher" }}
prompts = {{ train = "{recipe.folder}/prompts.jsonl", max_tokens = 10 }}
score = {{ k = 4 }}
loss = {{ kind = "forward_kl" }}

[rollout]
prompts_per_round = {prompts}
samples_per_prompt = 1
prompts_per_unit = {unit}
max_new_tokens = {recipe.new_tokens}
temperature = 1.0
top_p = 1.0
top_k = 0

[train]
learning_rate = {recipe.learning_rate}
sequences_per_step = {recipe.sequences}
warmup_steps = {recipe.warmup}
schedule = "cosine"
decay_steps = {recipe.steps}
decay_floor = {recipe.floor}
betas = [{recipe.betas[0]}, {recipe.betas[1]}]
weight_decay = {recipe.weight_decay}
max_grad_norm = {norm}
"""
"""What opd is told of a recipe."""


@dataclass(frozen=True)
class Ended:
    """A process that ended well: what it took with its children, and the last line it printed."""

    cpu_s: float
    peak_bytes: int
    last: str


@dataclass(frozen=True)
class Side:
    """One side with one seed: a step's cost, the longer run's memory, and where its student is."""

    step_s: float
    peak_bytes: int
    student: Path


def run(*, quick: bool, seed: int, data: Path | None = None) -> Result:
    """Measure both sides in turn with three seeds, or with one and untaught models where quick.

    Args:
        quick: whether it is to take a minute.
        seed: of the models, and the first of the seeds.
        data: a folder of the quickstart, made with that seed; without one it is made first.

    Raises:
        ConfigError: TRL's environment is not there, or the folder is none of the quickstart's.
    """
    if not PYTHON.exists():
        raise ConfigError(f"there is no TRL in {PYTHON.parts[-3]}: make {PYTHON.parts[-3]}/.peers")
    rounds = (1, 3) if quick else (2, 12)
    with tempfile.TemporaryDirectory(prefix="opd-bench-") as name:
        folder = Path(name) / "files" if data is None else data.resolve()
        _own("make", folder, seed, *(["quick"] if quick and data is None else []))
        cases, ours, theirs = list[Case](), list[Side](), list[Side]()
        for index in range(1 if quick else 3):
            at = Path(name) / str(index)
            recipe = _recipe(folder, at, seed + index)
            sides = [(ours, _opd), (theirs, _trl)]
            for into, measured in sides[:: -1 if index % 2 else 1]:
                into.append(measured(recipe, rounds))
            cases.append(_case(recipe, ours[-1], theirs[-1], grader_seed=seed))
        split = _split(_recipe(folder, Path(name) / "split", seed), rounds)
    ratios = spread([a.step_s / b.step_s for a, b in zip(ours, theirs, strict=True)])
    cases[0]["step_ratio"] = ratios
    figures = {
        "step_ratio": ratios.median,
        "accuracy_opd": mean(float(str(case["accuracy_opd"])) for case in cases),
        "accuracy_trl": mean(float(str(case["accuracy_trl"])) for case in cases),
        "peak_mb_opd": max(side.peak_bytes for side in ours) / 1e6,
        "peak_mb_trl": max(side.peak_bytes for side in theirs) / 1e6,
    }
    return Result(figures, cases, nested={"cpu_s_per_step": {"opd": split}})


def _recipe(folder: Path, at: Path, seed: int) -> Recipe:
    at.mkdir()
    return Recipe(
        folder=str(folder),
        out=str(at),
        steps=0,
        seed=seed,
        sequences=64,
        new_tokens=23,
        learning_rate=3e-3,
        floor=0.01,
        warmup=5,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )


def _case(recipe: Recipe, ours: Side, theirs: Side, *, grader_seed: int) -> Case:
    graded = [_own("grade", side.student, grader_seed)["accuracy"] for side in (ours, theirs)]
    return {
        "case": f"seed {recipe.seed}",
        "step_ratio": ours.step_s / theirs.step_s,
        "opd_cpu_s_per_step": ours.step_s,
        "trl_cpu_s_per_step": theirs.step_s,
        "accuracy_opd": graded[0],
        "accuracy_trl": graded[1],
    }


def _opd(recipe: Recipe, rounds: Sequence[int]) -> Side:
    """Run a shorter and a longer run of opd, each from nothing."""
    done = []
    for count in rounds:
        config = _config(recipe, count, longest=max(rounds))
        words = ["-m", "cli.main", "run", "-c", str(config), "--rounds", str(count), "--json"]
        done.append(_ended([sys.executable, *words]))
    checkpoint = f"runs/peer/checkpoints/{max(rounds):04d}"
    return _side(done, rounds, Path(recipe.out) / f"store-{max(rounds)}" / checkpoint)


def _trl(recipe: Recipe, rounds: Sequence[int]) -> Side:
    """Train as many steps by TRL, each time from nothing."""
    done = []
    for count in rounds:
        out = Path(recipe.out) / f"trl-{count}"
        told = replace(recipe, out=str(out), steps=count * STEPS_PER_ROUND)
        done.append(_ended([str(PYTHON), "-m", "benchmarks.kit.trltrainer", told.words]))
    return _side(done, rounds, out)


def _side(done: Sequence[Ended], rounds: Sequence[int], student: Path) -> Side:
    steps = (rounds[1] - rounds[0]) * STEPS_PER_ROUND
    return Side((done[1].cpu_s - done[0].cpu_s) / steps, done[1].peak_bytes, student)


def _config(recipe: Recipe, rounds: int, *, longest: int) -> Path:
    path = Path(recipe.out) / f"run-{rounds}.toml"
    told = replace(recipe, steps=longest * STEPS_PER_ROUND)
    text = CONFIG.format(
        recipe=told,
        root=f"store-{rounds}",
        rounds=rounds,
        prompts=STEPS_PER_ROUND * recipe.sequences,
        unit=UNIT_PROMPTS,
        norm=MAX_GRAD_NORM,
    )
    path.write_text(text)
    return path


def _split(recipe: Recipe, rounds: Sequence[int]) -> dict[str, float]:
    """Return our CPU seconds per step and stage, in all rounds but those of a shorter run."""
    few, many = rounds
    spent = _own("stages", _config(recipe, many, longest=many), many, few)
    steps = (many - few) * STEPS_PER_ROUND
    return {stage: float(f"{seconds / steps:.4g}") for stage, seconds in spent.items()}


def _own(*words: object) -> dict[str, float]:
    """Return what a process of `kit/peerruns.py` gives."""
    command = [sys.executable, "-m", "benchmarks.kit.peerruns", *map(str, words)]
    found: dict[str, float] = json.loads(_ended(command).last)
    return found


def _ended(command: Sequence[str]) -> Ended:
    """Run a command to its end and return what it took."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=printed, stderr=told, text=True
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (printed, told):
            file.seek(0)
        if process.returncode:
            words = told.read()[-2000:]
            raise ConfigError(f"{command[1:4]} ended with {process.returncode}: {words}")
        lines = printed.read().splitlines()
    unit = 1 if sys.platform == "darwin" else 1024
    return Ended(used.ru_utime + used.ru_stime, used.ru_maxrss * unit, lines[-1] if lines else "")
