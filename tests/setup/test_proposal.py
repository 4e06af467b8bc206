"""What is proposed for a run: values that fit models, prompts and machine, each with its reason."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.setup.proposal import Facts, propose
from pipeline.setup.text import settings_in, toml_of
from pipeline.sizing.machine import Machine
from pipeline.sizing.parts import GIB
from schemas.config.file import parse_config
from schemas.config.run import RunConfig

CPU = Machine(cores=2, memory_bytes=16 * GIB)
GPU = Machine(cores=16, memory_bytes=128 * GIB, gpus=(80 * GIB,), has_vllm=True)
SMALL = Facts(CPU, parameters=5_000_000, vocabulary=500, context=1024, prompts=1000, longest=40)
LARGE = Facts(GPU, parameters=600_000_000, vocabulary=151_936, context=40_960, prompts=50_000)
GIVEN: dict[str, dict[str, Any]] = {
    "run": {"name": "x", "root": "data"},
    "student": {"model": "s", "revision": "0" * 40},
    "teachers": {"main": {"model": "t", "tokenizer_check": "vocabulary"}},
    "prompts": {"train": "p.jsonl", "eval": "h.jsonl"},
    "eval": {"reward": "exact_match"},
}


def text_of(facts: Facts) -> str:
    return toml_of(propose(facts), GIVEN, notes={"student": "a\nb"}, file="run.toml")


def config_of(facts: Facts) -> RunConfig:
    return parse_config(text_of(facts), where="run.toml")


@pytest.mark.parametrize(
    ("facts", "base"),
    [
        (SMALL, "opd:cpu@1"),
        (LARGE, "opd:full@1"),
        (replace(LARGE, parameters=8_000_000_000), "opd:lora@1"),
        (replace(LARGE, parameters=None), "opd:lora@1"),
        (replace(LARGE, base="opd:cpu"), "opd:cpu@1"),
    ],
)
def test_the_profile_is_the_one_that_fits_the_memory(facts: Facts, base: str) -> None:
    assert propose(facts).base == base


@pytest.mark.parametrize("count", [1, 3, 20, 64, 5000, None])
@pytest.mark.parametrize("context", [40, 64, 300, 40_960, None])
@pytest.mark.parametrize("longest", [1, 30, 600, None])
def test_what_is_proposed_is_a_configuration_that_the_models_hold(
    count: int | None, context: int | None, longest: int | None
) -> None:
    for facts in (SMALL, LARGE):
        config = config_of(replace(facts, prompts=count, context=context, longest=longest))
        new, most = config.rollout.max_new_tokens, config.prompts.max_tokens
        if context is not None:
            assert new + most + 1 <= context
        rows = config.rollout.prompts_per_round * config.rollout.samples_per_prompt
        assert config.train.sequences_per_step <= rows
        if count is not None:
            assert config.rollout.prompts_per_round <= count
        if longest is not None and longest > most:
            assert config.prompts.on_error == "skip"
        assert new >= 16


def test_no_more_than_fifteen_lines_are_settings_however_much_differs() -> None:
    much = Machine(cores=64, memory_bytes=512 * GIB, gpus=(80 * GIB,) * 8, has_vllm=True)
    facts = Facts(
        machine=much,
        parameters=3_000_000_000,
        vocabulary=30,
        context=64,
        prompts=5,
        longest=90,
        unusable="3 duplicate",
        is_graded=True,
    )
    text = text_of(facts)
    config = parse_config(text, where="run.toml")
    assert config.train.num_processes == 8 and config.eval is not None
    assert (config.rollout.engine, config.eval.engine) == ("vllm", "vllm")
    assert 10 < settings_in(text) <= 15


def test_every_proposed_value_has_its_reason_as_a_comment_above_it() -> None:
    facts = replace(LARGE, prompts=5, context=300, parameters=3_000_000_000)
    lines = text_of(facts).splitlines()
    for value in propose(facts).values:
        place = next(i for i, line in enumerate(lines) if f"{value.key} = " in line)
        assert any(value.reason in line for line in lines[:place] if line.startswith("#"))


def test_a_run_that_will_not_fit_is_told_so() -> None:
    (words,) = propose(replace(SMALL, teacher_parameters=8_000_000_000)).warnings
    assert "need 30 GiB, and this machine has 16" in words
    assert propose(SMALL).warnings == ()


def test_the_learning_rate_falls_with_the_size_of_the_student() -> None:
    sizes = (5e6, 1e8, 6e8, 3e9, 4e9)
    machine = Machine(cores=8, memory_bytes=GIB, gpus=(1000 * GIB,))
    rates = [
        config_of(replace(LARGE, machine=machine, parameters=int(n))).train.learning_rate
        for n in sizes
    ]
    assert rates == sorted(rates, reverse=True) and rates[0] > 10 * rates[-1]
