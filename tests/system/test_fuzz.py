"""Random and damaged inputs: each ends in data or in a refusal; the benchmark `fuzz` tries more."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.kit.fuzztargets import ACCEPTED, TARGETS, Target

SEEDS = st.integers(0, 2**32)

EXAMPLES = {"codecs": 50, "stored columns": 150, "shard bytes": 150, "stored shards": 60}
"""Inputs of targets that take milliseconds; of the others, many more."""

ALWAYS = {"codecs": {ACCEPTED}, "stored shards": {"DataError"}}
"""What every input of a target ends as."""

each_target = pytest.mark.parametrize("name", TARGETS)


def tried(count: int, check: Callable[[int], None]) -> None:
    settings(max_examples=count, deadline=None)(given(SEEDS)(check))()


@each_target
def test_a_damaged_input_is_data_or_is_refused(name: str) -> None:
    target, outcomes = TARGETS[name], set[str]()

    def check(seed: int) -> None:
        outcomes.add(target.check(target.make(Random(seed))))

    tried(EXAMPLES.get(name, 500), check)
    assert outcomes - {ACCEPTED, "BadRecord", "ConfigError", "DataError", "IdentityError"} == set()
    assert outcomes == ALWAYS[name] if name in ALWAYS else len(outcomes) > 1


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.parquet", "records", "run.toml"])
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_data_or_are_refused(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


@each_target
def test_what_is_not_damaged_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kit.fuzztargets.mutated", lambda data, random: data)
    target = TARGETS[name]
    assert ACCEPTED in {target.check(target.make(Random(seed))) for seed in range(40)}


def test_a_failure_is_counted_and_printed_with_what_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(data: bytes) -> str:
        raise RuntimeError(f"no {data!r}")

    monkeypatch.setitem(TARGETS, "records", Target(lambda random: random.randbytes(1), check))
    result = fuzz.run(quick=True, seed=3, minutes=0.001)
    targets, (first, *_) = result.nested["targets"], result.found["failures"]
    assert targets["records"]["failures"] == targets["records"]["executions"] > 0
    assert targets["run.toml"]["failures"] == 0
    assert first.startswith("records: RuntimeError: no b'") and 'TARGETS["records"]' in first
    printed = capsys.readouterr().err
    assert first in printed and "Traceback" in printed
