"""Figures of optimizer steps: means over trained tokens, stored whole, refused where impossible."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.batches import StepPlan
from pipeline.learner.metrics import (
    Step,
    applied,
    check_first_step,
    skip_note,
    step_metrics,
    steps_shard,
)
from pipeline.shards.parquet import read_table
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError
from schemas.records.training import TrainManifest
from tests.support.minimal import minimal_run
from tests.support.paperrun import plan_of

FIGURE = st.integers(-1000, 1000).map(lambda n: n / 8)


def plan(tokens: int) -> StepPlan:
    return StepPlan(micro=((np.arange(2),),), trained_tokens=tokens)


@given(st.lists(st.tuples(st.integers(1, 4), FIGURE), min_size=1, max_size=9), FIGURE)
def test_figures_are_means_weighted_by_the_weights_of_tokens(
    tokens: list[tuple[int, float]], loss: float
) -> None:
    totals = {
        "loss": loss,
        "weight": float(sum(weight for weight, _ in tokens)),
        "forward_kl": sum(weight * value for weight, value in tokens),
    }
    found = step_metrics(totals, plan(len(tokens)), 0.5, 1e-3)
    expected = [value for weight, value in tokens for _ in range(weight)]
    assert found["forward_kl"] == pytest.approx(sum(expected) / len(expected))
    assert found["loss"] == pytest.approx(loss / len(tokens))
    assert (found["tokens"], found["learning_rate"], found["grad_norm"]) == (
        len(tokens),
        1e-3,
        0.5,
    )
    assert "weight" not in found


def test_a_step_without_trained_tokens_has_figures_of_nought() -> None:
    found = step_metrics({"loss": 0.0, "weight": 0.0, "forward_kl": 0.0}, plan(0), None, 1e-3)
    assert (found["loss"], found["forward_kl"], found["grad_norm"]) == (0.0, 0.0, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_whose_loss_or_norm_is_no_number_is_skipped_and_says_which(value: float) -> None:
    lost = step_metrics({"loss": value, "weight": 1.0, "forward_kl": value}, plan(1), value, 1e-3)
    assert (lost["skipped"], lost["loss"], lost["forward_kl"]) == (1.0, None, None)
    steep = step_metrics({"loss": 1.0, "weight": 1.0}, plan(1), value, 1e-3)
    assert (steep["skipped"], steep["loss"], steep["grad_norm"]) == (1.0, 1.0, None)
    good = step_metrics({"loss": 1.0, "weight": 1.0}, plan(1), 0.5, 1e-3)
    assert good["skipped"] == 0.0
    assert applied([lost, good, steep]) == [good]
    assert skip_note([lost, good], is_last=True) is None
    assert "step 2 of the round was skipped: its loss is" in str(
        skip_note([good, lost], is_last=True)
    )
    assert "its gradient norm is" in str(skip_note([good, lost, steep], is_last=True))
    assert skip_note([steep], is_last=False) is not None


@pytest.mark.parametrize(
    ("skipped", "is_last", "ends"),
    [
        ("s", False, False),
        ("s", True, True),
        ("ss", True, True),
        (".ss", True, False),
        (".sss", False, True),
        ("ss.s.ss", True, False),
        ("ss.s.sss", False, True),
    ],
)
def test_too_many_skipped_steps_in_a_row_or_all_of_a_round_end_it(
    skipped: str, is_last: bool, ends: bool
) -> None:
    steps: list[Step] = [{"loss": None, "skipped": float(letter == "s")} for letter in skipped]
    with pytest.raises(ConfigError, match="lower train") if ends else nullcontext():
        skip_note(steps, is_last=is_last)


def test_a_skipped_step_counts_for_no_mean_but_how_many_were(memory: Storage) -> None:
    steps: list[Step] = [
        {"loss": 1.0, "tokens": 30.0, "skipped": 0.0},
        {"loss": None, "tokens": 10.0, "skipped": 1.0},
    ]
    assert steps_shard(minimal_run(memory), 0, 0, steps)[1] == {"loss": 1.0, "skipped": 0.25}
    assert steps_shard(minimal_run(memory), 0, 0, steps[1:])[1] == {"skipped": 1.0}


def test_steps_are_stored_whole_and_summed_up_by_their_tokens(memory: Storage) -> None:
    run = minimal_run(memory)
    steps: list[Step] = [
        {"loss": 1.0, "tokens": 30.0, "grad_norm": None, "learning_rate": 0.1},
        {"loss": 5.0, "tokens": 10.0, "grad_norm": 2.0, "learning_rate": 0.3},
    ]
    shard, means = steps_shard(run, 3, 40, steps)
    table, metadata = read_table(memory.read_shard(shard), where="x")
    assert shard.key.startswith("runs/demo/metrics/") and shard.rows == 2
    assert table.column("step").to_pylist() == [40, 41]
    assert table.drop_columns(["step"]).to_pylist() == [dict(sorted(s.items())) for s in steps]
    assert (metadata["run"], metadata["round"]) == ("demo", 3)
    assert means == {"loss": pytest.approx(2.0), "learning_rate": pytest.approx(0.15)}


def test_a_round_that_another_opd_began_keeps_the_names_of_both(memory: Storage) -> None:
    before: Step = {"loss": 1.0, "tokens": 10.0, "token_logprob": -3.0}
    after: Step = {"loss": 2.0, "tokens": 10.0, "student_token_logprob": -2.0}
    shard, means = steps_shard(minimal_run(memory), 0, 0, [before, after])
    table, _ = read_table(memory.read_shard(shard), where="x")
    assert table.column("token_logprob").to_pylist() == [-3.0, None]
    assert table.column("student_token_logprob").to_pylist() == [None, -2.0]
    assert means == {"loss": 1.5}


def test_a_train_manifest_with_names_of_before_is_read(memory: Storage) -> None:
    run = minimal_run(memory)
    before: Step = {"loss": 1.0, "tokens": 10.0, "token_logprob": -3.0}
    shard, means = steps_shard(run, 0, 0, [before])
    assert means == {"loss": 1.0, "token_logprob": -3.0}
    written = TrainManifest(
        run=run.name,
        round=0,
        fingerprint="f",
        policy_version_in="a",
        policy_version_out="b",
        shards=(),
        rows=1,
        stale_rows=0,
        untrained_rows=0,
        tokens=10,
        first_step=0,
        steps=1,
        optimizer_restarted=False,
        metrics=shard,
        summary=means,
    )
    run.storage.put(run.manifest_key(0, "train"), written.to_bytes())
    assert run.train(0) == written


ROUNDED, TEMPERED = "student.dtype=bfloat16", "rollout.temperature=0.7"
DROPPED = ("train.lora.rank=2", "train.lora.alpha=4", 'train.lora.target_modules="all-linear"')


@pytest.mark.parametrize(
    ("kl", "overrides", "padded", "stops"),
    [
        (1e-8, (), False, False),
        (2e-6, (), False, True),
        (math.nan, (), False, True),
        (2e-6, (), True, False),
        (0.06, (), True, True),
        (0.04, (ROUNDED,), False, False),
        (0.06, (ROUNDED,), False, True),
        (0.06, (ROUNDED, "train.max_rollout_kl=0.1"), False, False),
        (0.06, (TEMPERED,), False, False),
        (0.06, ("train.max_staleness=1",), False, False),
        (0.06, (*DROPPED, "train.lora.dropout=0.1"), False, False),
        (0.06, DROPPED, False, True),
        (None, (), False, False),
    ],
)
def test_a_learner_is_held_to_what_the_rollout_drew_from_but_for_rounding(
    kl: float | None, overrides: tuple[str, ...], padded: bool, stops: bool
) -> None:
    run = minimal_run(Storage("memory://first-step"), *overrides)
    drawn = {"sampling": {"vocab_size": 9 if padded else 10}}
    sampled = plan_of(run, 0).model_copy(update=drawn)
    words = "rollout_kl.*has 9 of the model's 10 ids" if padded else "rollout_kl"
    with pytest.raises(DataError, match=words) if stops else nullcontext():
        check_first_step(run, sampled, kl, vocab_size=10)
