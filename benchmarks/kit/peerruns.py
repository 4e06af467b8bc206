"""What `peers` does of opd in processes of their own, so that its own stays small: files, grades.

`python -m benchmarks.kit.peerruns make|grade|stages …` prints its result as one line of JSON.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.quickstart.folder import EVAL_PROMPTS, config_text, make_quickstart

ROUNDS = 20
"""Rounds of the quickstart that prompts are made for where none are named."""

QUICK_STEPS = 20
"""Steps of the models' own training where a benchmark is to take seconds."""


def make(folder: str, seed: str, *quick: str, rounds: int = ROUNDS) -> dict[str, str]:
    """Make the quickstart's models, prompts and run.toml in a folder, keeping what is there.

    The learning rate of that run.toml reaches its floor at the end of these rounds.
    """
    place, number = Path(folder), int(seed)
    if quick:
        from pipeline.quickstart.models import STUDENT, TEACHER, train_model

        for name, recipe in (("teacher", TEACHER), ("student", STUDENT)):
            short = replace(recipe, steps=QUICK_STEPS, check_every=QUICK_STEPS)
            train_model(short, place / name, seed=number, report=lambda step, total: None)
    text = config_text(root="store", seed=number, rounds=rounds, engine="hf")
    make_quickstart(place, text, seed=number, rounds=rounds, report=lambda name, step, total: None)
    return {"folder": folder}


def grade(model: str, seed: str) -> dict[str, float]:
    """Return the share of the quickstart's held-out problems that a model solves."""
    from pipeline.quickstart.models import held_out_accuracy

    return {"accuracy": held_out_accuracy(Path(model), int(seed) + 1, EVAL_PROMPTS)}


def stages(config: str, rounds: str, after: str) -> dict[str, float]:
    """Run rounds, and return the CPU seconds of each stage in all rounds but the first few."""
    from cli.options import load_run
    from cli.output import make_progress
    from pipeline.stages.rounds import run_rounds
    from pipeline.stages.train import run_train

    run, progress = load_run(config, None), make_progress(as_json=True)
    spent: dict[str, float] = defaultdict(float)
    last = time.process_time()
    for result in run_rounds(
        run,
        int(rounds),
        train=lambda index: run_train(run, index, progress=progress),
        progress=progress,
    ):
        now = time.process_time()
        if result.round is not None and result.round >= int(after):
            spent[result.stage] += now - last
        last = now
    return spent


if __name__ == "__main__":
    actions: dict[str, Callable[..., object]] = {"make": make, "grade": grade, "stages": stages}
    print(json.dumps(actions[sys.argv[1]](*sys.argv[2:])))
