"""The DeepSpeed learner on one process against a plain torch loop, at every stage and format."""

import gc
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.learner.feed.layout import batch_inputs
from pipeline.learner.learner import Learner, token_logprobs
from pipeline.models.head import head_of
from pipeline.models.loading import load_model
from schemas.config.loss import LossConfig
from schemas.errors import ConfigError, DataError
from tests.support.learning import (
    ALL_AT_ONCE,
    FORWARD_KL,
    OF_RESPONSES,
    ONE_BY_ONE,
    POLICY_GRADIENT,
    RATE,
    SOME,
    STAGES,
    STEPS,
    VOCAB,
    Setup,
    Trained,
    Trainer,
    reference,
    rows,
    scored_round,
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with scored_round(tmp_path_factory.mktemp("learner")) as made:
        yield made


@pytest.fixture(scope="module")
def train(setup: Setup) -> Trainer:
    return Trainer(setup)


@pytest.fixture
def learners(setup: Setup) -> Iterator[Any]:
    """Return a maker of fresh learners that are closed at the end."""
    made: list[Learner] = []

    def make(**fields: Any) -> Learner:
        made.append(setup.learner(**fields))
        return made[-1]

    yield make
    for learner in made:
        learner.close()


def moves(setup: Setup, trained: Trained) -> Tensor:
    """Return by how much training changed each weight near 0, where bfloat16 is fine enough."""
    begun = load_model(setup.source, dtype="float32", device="cpu").state_dict()
    pairs = ((t.float(), begun[name].bfloat16().float()) for name, t in trained.state.items())
    return torch.cat([(after - before)[before.abs() < 0.02] for after, before in pairs])


@pytest.mark.parametrize("loss", [FORWARD_KL, POLICY_GRADIENT, OF_RESPONSES], ids=range(3))
def test_steps_equal_those_of_a_plain_torch_loop(
    setup: Setup, train: Trainer, loss: LossConfig
) -> None:
    model: Any = load_model(setup.source, dtype="float32", device="cpu").train()
    expected, found = reference(setup, loss, model), train(loss=loss)
    assert found.gap(expected) < 2e-6
    assert found.values("loss") == pytest.approx(expected.values("loss"), rel=1e-5)
    assert found.values("grad_norm") == pytest.approx(expected.values("grad_norm"), rel=1e-4)
    assert found.values("tokens") == expected.values("tokens")
    assert found.values("learning_rate") == [RATE] * STEPS
    begun = load_model(setup.source, dtype="float32", device="cpu").state_dict()
    assert found.gap(Trained(begun, [])) > RATE


@pytest.mark.parametrize("micro_tokens", [SOME, ONE_BY_ONE])
def test_micro_batches_of_any_size_give_the_same_step(
    setup: Setup, train: Trainer, micro_tokens: int
) -> None:
    counts = [len(setup.plans(m)[0].micro) for m in (ALL_AT_ONCE, SOME, ONE_BY_ONE)]
    assert counts[0] == 1 < counts[1] < counts[2]
    assert len({len(plan.micro) for plan in setup.plans(SOME)}) > 1, "steps of different lengths"
    whole, split = train(), train(micro_tokens)
    assert split.gap(whole) < 1e-6
    for name in ("loss", "grad_norm", "forward_kl", "student_entropy"):
        assert split.values(name) == pytest.approx(whole.values(name), rel=1e-5)


def test_a_step_whose_data_travel_to_a_device_is_the_same_step(
    setup: Setup, train: Trainer
) -> None:
    """Up to where tensors begin in memory, by which products are rounded."""
    there = Trainer(replace(setup, ranks=replace(setup.ranks, device="cpu:0")))(SOME)
    assert there.gap(train(SOME)) < 1e-6
    assert there.values("loss") == pytest.approx(train(SOME).values("loss"), rel=1e-6)


def test_the_metrics_are_means_over_the_tokens_of_a_step(setup: Setup, train: Trainer) -> None:
    found = train()
    assert found.values("loss") != pytest.approx(found.values("forward_kl"), rel=1e-3)  # weighted
    for name in ("student_mass", "teacher_mass"):
        assert all(0 < value <= 1 for value in found.values(name))
    assert all(0 < value <= math.log(VOCAB) for value in found.values("student_entropy"))


def test_micro_batches_that_train_nothing_change_nothing(
    setup: Setup, train: Trainer, learners: Any
) -> None:
    plans = [
        replace(plan, micro=(*plan.micro, (np.empty(0, dtype=np.int64),)))
        for plan in setup.plans(ALL_AT_ONCE)
    ]
    learner = learners()
    steps = [learner.step(plan, setup.data, RATE) for plan in plans]
    padded, whole = Trained(learner.full_state(), steps), train()
    assert padded.gap(whole) < 1e-7
    assert padded.values("loss") == pytest.approx(whole.values("loss"), rel=1e-6)
    assert padded.values("student_mass") == pytest.approx(whole.values("student_mass"), rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "micro_tokens"),
    [(1, ONE_BY_ONE), (2, ALL_AT_ONCE), (2, ONE_BY_ONE), (3, ALL_AT_ONCE), (3, ONE_BY_ONE)],
)
def test_every_zero_stage_gives_the_same_steps(
    train: Trainer, stage: int, micro_tokens: int
) -> None:
    plain, split = train(), train(micro_tokens, zero_stage=stage)
    assert split.gap(plain) < 1e-6
    for name in ("loss", "grad_norm"):
        assert split.values(name) == pytest.approx(plain.values(name), rel=1e-5)
    assert (split.logprobs - plain.logprobs).abs().max() < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_packed_and_padded_rows_give_the_same_steps(train: Trainer, stage: int) -> None:
    packed, padded = train(packing="on"), train(packing="off", zero_stage=stage)
    assert packed.gap(padded) < 1e-6
    for name in ("loss", "grad_norm", "student_mass"):
        assert packed.values(name) == pytest.approx(padded.values(name), rel=1e-5)


def test_an_optimizer_in_cpu_memory_gives_the_same_steps(train: Trainer) -> None:
    assert train(zero_stage=2, offload_optimizer=True).gap(train()) < 1e-6


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_give_the_same_steps(train: Trainer, stage: int) -> None:
    found = train(zero_stage=stage, activation_checkpointing=True)
    assert found.gap(train()) < 1e-6
    assert found.values("grad_norm") == pytest.approx(train().values("grad_norm"), rel=1e-5)


def test_stage_3_splits_the_head_and_gathers_it_only_to_compute(
    setup: Setup, learners: Any
) -> None:
    learner, plan = learners(zero_stage=3), setup.plans(ALL_AT_ONCE)[0]
    head = head_of(learner.student).weight_VH
    for _ in range(2):
        assert head.numel() == 0
        learner.step(plan, setup.data, RATE)
        assert head.numel() == 0
        assert learner.full_state()["lm_head.weight"].shape == (VOCAB, 32)
        learner.probe(rows(setup))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_full_state_has_every_tensor_whole(
    setup: Setup, train: Trainer, stage: int, dtype: str
) -> None:
    expected = load_model(setup.source, dtype=dtype, device="cpu").state_dict()
    micro_tokens = ONE_BY_ONE if dtype == "float32" else SOME  # as in other tests
    state = train(micro_tokens, zero_stage=stage, dtype=dtype).state
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    assert shapes == {name: (t.shape, t.dtype) for name, t in expected.items()}
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


@pytest.mark.parametrize("stage", [0, 2])
def test_the_learning_rate_of_a_step_is_the_one_given(
    setup: Setup, learners: Any, stage: int
) -> None:
    learner, plan = learners(zero_stage=stage), setup.plans(ALL_AT_ONCE)[0]
    begun = Trained(learner.full_state(), [])
    assert learner.step(plan, setup.data, 0.0)["learning_rate"] == 0.0
    assert Trained(learner.full_state(), []).gap(begun) == 0.0
    learner.step(plan, setup.data, 1e-4)
    moved = Trained(learner.full_state(), []).gap(begun)
    assert 0.5e-4 < moved < 2e-4  # Adam moves the weights by about the rate


def test_gradients_above_the_limit_are_scaled_down_to_it(setup: Setup, learners: Any) -> None:
    """A huge offset makes AdamW linear in the gradient, so that its update shows its norm."""
    plan, limit, eps = setup.plans(ALL_AT_ONCE)[0], 1e-3, 1.0
    for stage in (0, 2):
        learner = learners(zero_stage=stage, max_grad_norm=limit, eps=eps, weight_decay=0.0)
        begun = learner.full_state()
        norm = learner.step(plan, setup.data, 1e6)["grad_norm"]
        assert norm > 10 * limit
        moved = [tensor - begun[name] for name, tensor in learner.full_state().items()]
        used = torch.nn.utils.get_total_norm(moved[:-1]) * eps / 1e6  # the last is the tied head
        assert float(used) == pytest.approx(limit, rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_follows_float32(setup: Setup, train: Trainer, stage: int) -> None:
    """Weights move as far as with float32: a wrong bias correction of Adam would shorten that."""
    exact, low = train(), train(SOME, zero_stage=stage, dtype="bfloat16")
    assert low.values("loss") == pytest.approx(exact.values("loss"), rel=0.02)
    assert low.values("grad_norm") == pytest.approx(exact.values("grad_norm"), rel=0.05)
    wanted, found = (moves(setup, trained) for trained in (exact, low))
    assert float(found @ wanted / (wanted @ wanted)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("stage", [0, 3])
def test_bfloat16_keeps_float32_masters_that_gather_updates_below_its_resolution(
    setup: Setup, learners: Any, stage: int
) -> None:
    learner, plan = learners(dtype="bfloat16", zero_stage=stage), setup.plans(ALL_AT_ONCE)[0]
    name = "model.layers.0.mlp.down_proj.weight"
    begun = learner.full_state()[name]
    large = begun.abs() > 0.13  # neighbouring bfloat16 numbers are 1e-3 apart there
    learner.step(plan, setup.data, 2e-4)
    assert torch.equal(learner.full_state()[name][large], begun[large])
    for _ in range(6):
        learner.step(plan, setup.data, 2e-4)
    moved = learner.full_state()[name][large] != begun[large]
    assert moved.float().mean() > 0.3


@pytest.mark.parametrize("stage", [0, 3])
def test_an_exported_bfloat16_state_is_the_model_that_was_trained(
    setup: Setup, train: Trainer, stage: int
) -> None:
    trained = train(SOME, zero_stage=stage, dtype="bfloat16")
    model: Any = load_model(setup.source, dtype="bfloat16", device="cpu")
    model.load_state_dict(trained.state)
    ids_BT, mask_BT, states_2T = batch_inputs(rows(setup), "cpu")
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    assert torch.equal(token_logprobs(logits_BTV, ids_BT, states_2T), trained.logprobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0, "dtype": "float32"},
        {"zero_stage": 3, "dtype": "float32"},
        {"zero_stage": 1, "dtype": "bfloat16"},
        {"zero_stage": 3, "dtype": "bfloat16"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_restored_state_goes_on_bit_for_bit(
    setup: Setup, train: Trainer, learners: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    micro_tokens = ONE_BY_ONE if fields["dtype"] == "float32" else SOME
    plans = setup.plans(micro_tokens)
    first = learners(**fields)
    first.step(plans[0], setup.data, RATE)
    first.save(tmp_path)
    second = learners(**fields)
    second.load(tmp_path)
    steps = [second.step(plan, setup.data, RATE) for plan in plans[1:]]
    quiet = train(micro_tokens, **fields)
    assert steps == quiet.steps[1:]
    assert Trained(second.full_state(), []).gap(quiet) == 0.0


def test_a_state_saved_with_other_micro_batches_steps_at_the_end_of_a_step(
    setup: Setup, train: Trainer, learners: Any, tmp_path: Path
) -> None:
    many, one = setup.plans(ONE_BY_ONE), setup.plans(ALL_AT_ONCE)
    first = learners()
    first.step(many[0], setup.data, RATE)
    first.save(tmp_path)
    second = learners()
    second.load(tmp_path)
    for plan in one[1:]:
        empty: tuple[Any, ...] = (np.empty(0, dtype=np.int64),)
        second.step(replace(plan, micro=(*plan.micro, empty)), setup.data, RATE)
    assert Trained(second.full_state(), []).gap(train()) < 1e-6


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_no_numbers_are_not_saved(
    setup: Setup, learners: Any, tmp_path: Path, stage: int
) -> None:
    learner, plans = learners(zero_stage=stage), setup.plans(ALL_AT_ONCE)
    assert math.isfinite(learner.step(plans[0], setup.data, 1e38)["loss"])
    with pytest.raises(ConfigError, match=r"lower train\.learning_rate"):
        learner.save(tmp_path)


def test_files_that_do_not_fit_are_told_before_a_step(
    setup: Setup, learners: Any, tmp_path: Path
) -> None:
    learners(zero_stage=2).save(tmp_path)
    for stage in (0, 3):
        with pytest.raises(DataError, match="does not fit this learner"):
            learners(zero_stage=stage).load(tmp_path)


def test_the_settings_of_the_optimizer_are_the_learners_own(
    setup: Setup, learners: Any, tmp_path: Path
) -> None:
    learners(zero_stage=2, eps=1e-2).save(tmp_path)
    learner = learners(zero_stage=2, eps=1e-5)
    learner.load(tmp_path)
    assert {group["eps"] for group in learner._engine.optimizer.param_groups} == {1e-5}


@pytest.mark.parametrize(
    ("fields", "weight", "lost"),
    [
        *(({"zero_stage": stage}, 3e38, "loss") for stage in STAGES),
        ({"zero_stage": 3, "dtype": "bfloat16"}, 3e38, "loss"),
        ({"zero_stage": 0}, 1e25, "grad_norm"),
        ({"zero_stage": 1}, 1e25, "grad_norm"),
        ({"zero_stage": 2, "dtype": "bfloat16"}, 1e25, "grad_norm"),
        ({"zero_stage": 2, "offload_optimizer": True}, 1e25, "grad_norm"),
    ],
)
def test_a_step_that_is_no_number_is_skipped_as_if_it_had_not_been(
    setup: Setup, learners: Any, fields: dict[str, Any], weight: float, lost: str
) -> None:
    first, second, third = setup.plans(ONE_BY_ONE)
    learner, other = learners(**fields), learners(**fields)
    begun = [learner.step(first, setup.data, RATE), other.step(first, setup.data, RATE)]
    with weighing(setup, weight):
        skipped = learner.step(second, setup.data, RATE)
    assert (skipped["skipped"], skipped[lost]) == (1.0, None)
    assert begun[0] == begun[1] and begun[0]["skipped"] == 0.0
    assert learner.step(third, setup.data, RATE) == other.step(third, setup.data, RATE)
    assert Trained(learner.full_state(), []).gap(Trained(other.full_state(), [])) == 0.0


@contextmanager
def weighing(setup: Setup, weight: float) -> Iterator[None]:
    """Give every token a weight, for the length of a block."""
    units = {index: setup.data._unit(index) for index in range(2)}
    for index, unit in units.items():
        heavy_T = np.full_like(unit.weight_T, weight)
        setup.data._held[index] = replace(unit, weight_T=heavy_T)
    try:
        yield
    finally:
        setup.data._held.update(units)


def test_an_impossible_target_stops_the_step(setup: Setup, learners: Any) -> None:
    learner, plan = learners(), setup.plans(ALL_AT_ONCE)[0]
    unit = setup.data._unit(0)
    nothing_T = np.full_like(unit.teacher.token_logprob_T, np.nan)
    damaged = replace(unit, teacher=replace(unit.teacher, token_logprob_T=nothing_T))
    try:
        setup.data._held[0] = damaged
        with pytest.raises(DataError, match="NaN"):
            learner.step(plan, setup.data, RATE)
    finally:
        setup.data._held[0] = unit


@pytest.mark.parametrize("stage", [0, 3])
def test_a_closed_learner_leaves_nothing_behind(setup: Setup, stage: int) -> None:
    learner = setup.learner(zero_stage=stage)
    learner.step(setup.plans(ALL_AT_ONCE)[0], setup.data, RATE)
    student = weakref.ref(learner.student)
    weight = weakref.ref(head_of(learner.student).weight_VH)
    learner.close()
    gc.collect()
    assert student() is None
    assert weight() is None
