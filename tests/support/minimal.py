"""A minimal configuration, and what becomes of it after `--set` overrides."""

import pytest

from pipeline.runs.run import Run
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.config.run import RunConfig
from schemas.errors import ConfigError

TEXT = """
[run]
name = "demo"
root = "data"
seed = 1
rounds = 2

[student]
model = "student"

[teachers.main]
model = "teacher"

[prompts]
train = "prompts.jsonl"
max_tokens = 64

[rollout]
prompts_per_round = 8
samples_per_prompt = 2
max_new_tokens = 16
temperature = 1.0
top_p = 1.0
top_k = 0

[score]
k = 8

[loss]
kind = "reverse_kl"

[train]
learning_rate = 1e-4
sequences_per_step = 4
"""

EVAL = ('prompts.eval="held.jsonl"', 'eval.reward="exact_match"')
"""Overrides that switch evaluation on."""


def parse(*overrides: str, text: str = TEXT) -> RunConfig:
    """Return the configuration of TOML text and overrides."""
    return parse_config(text, where="run.toml", overrides=overrides)


def minimal_run(storage: Storage, *overrides: str, text: str = TEXT) -> Run:
    """Return the run of TOML text and overrides in a store; its paths start from `/base`."""
    return Run(parse(*overrides, text=text), storage, ConfigPlace("/base"))


def message(*overrides: str, text: str = TEXT) -> str:
    """Return the message of the error that TOML text and overrides raise."""
    with pytest.raises(ConfigError) as caught:
        parse(*overrides, text=text)
    return str(caught.value)


def without(key: str) -> str:
    """Return the TOML without a key, or without a whole section."""
    section, _, name = key.rpartition(".")
    kept, inside = [], not section
    for line in TEXT.splitlines():
        if line.startswith("["):
            header = line.strip("[]")
            inside = header == section or (not section and header.split(".")[0] == name)
        if not (inside and (not section or line.startswith(f"{name} ="))):
            kept.append(line)
    return "\n".join(kept)
