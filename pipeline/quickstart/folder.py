"""Everything that the quickstart's run needs, made from nothing: models, prompts, run.toml.

The run itself is an ordinary one: no stage knows of the quickstart.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.quickstart.addition import MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS, Problem, distinct
from pipeline.store.disk import files

PROMPTS_PER_ROUND = 1280

EPOCHS = 3

EVAL_PROMPTS = 512

Report = Callable[[str, int, int], None]

CONFIG = """\
# The quickstart's run: a student of 141 thousand parameters learns addition from a teacher of 642
# thousand. Change a value, give the run another name, and type: opd run -c run.toml
# `opd config schema` describes every key.

[run]
name = "addition"
root = {root}            # where everything is stored; s3://bucket/prefix works too
seed = {seed}
rounds = {rounds}

[student]
model = "student"                # trained until it solves about a third of the problems

[teachers.main]
model = "teacher"

[prompts]
train = "prompts.jsonl"
eval = "held-out.jsonl"          # problems that no model was trained on
max_tokens = {max_prompt}

[rollout]
engine = "{engine}"                    # transformers; or vllm, for score and eval too
prompts_per_round = {per_round}         # few enough steps a round that samples do not go stale
samples_per_prompt = 1
max_new_tokens = {max_response}
temperature = 1.0                # sample the student's own distribution
top_p = 1.0
top_k = 0
prompts_per_unit = 320           # a crash loses at most one unit

[score]
engine = "{engine}"
k = 4                            # teacher's top-4 ids and the mass of the rest, per token

[loss]
kind = "forward_kl"              # or reverse_kl, jsd, skew_kl: the scores of round 0 are reused

[train]
learning_rate = 3e-3
sequences_per_step = 64
epochs = {epochs}                       # 60 optimizer steps a round
warmup_steps = 5
schedule = "cosine"
decay_steps = {decay}
decay_floor = 0.01               # a higher one leaves a few points of accuracy to chance
betas = [0.9, 0.98]
weight_decay = 0.01

[eval]
engine = "{engine}"
reward = "regex"                 # right answer after '#', and the stop token came
pattern = '#(\\d+)$'
"""


def make_quickstart(folder: Path, config: str, *, seed: int, rounds: int, report: Report) -> Path:
    """Make models, prompts and run.toml in a folder, keeping what is there; return run.toml.

    Args:
        folder: where everything goes.
        config: the text of run.toml, as `config_text` gives it.
        seed: root of weights and problems.
        rounds: rounds of the run.
        report: told which model trains, its step and its steps at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "prompts.jsonl", lambda: distinct_prompts(rounds, seed))
    _write(folder / "held-out.jsonl", lambda: distinct(EVAL_PROMPTS, seed + 1, held_out=True))
    for name in ("teacher", "student"):
        _make_model(name, folder / name, seed, report)
    path = folder / "run.toml"
    if not path.exists():
        files.create(path, config.encode())
    return path


def config_text(*, root: str, seed: int, rounds: int, engine: str) -> str:
    """Return the TOML of the quickstart's run."""
    return CONFIG.format(
        root=json.dumps(root),
        engine=engine,
        seed=seed,
        rounds=rounds,
        max_prompt=MAX_PROMPT_TOKENS,
        per_round=PROMPTS_PER_ROUND,
        max_response=MAX_RESPONSE_TOKENS,
        epochs=EPOCHS,
        decay=EPOCHS * rounds * PROMPTS_PER_ROUND // 64,
    )


def distinct_prompts(rounds: int, seed: int) -> list[Problem]:
    """Return training problems, none of them twice in the run."""
    return distinct(rounds * PROMPTS_PER_ROUND, seed, held_out=False)


def _write(path: Path, make: Callable[[], Iterable[Problem]]) -> None:
    if path.exists():
        return
    rows = [{"prompt": p.prompt, "reference": p.answer} for p in make()]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files.create(path, text.encode())


def _make_model(name: str, folder: Path, seed: int, report: Report) -> None:
    """Train a model in a folder beside its own and rename it when it is whole."""
    if folder.exists():
        return
    from pipeline.quickstart.models import STUDENT, TEACHER, train_model

    recipe = {"teacher": TEACHER, "student": STUDENT}[name]
    unfinished = folder.with_name(f"{name}.unfinished")
    train_model(recipe, unfinished, seed=seed, report=lambda step, total: report(name, step, total))
    unfinished.rename(folder)
