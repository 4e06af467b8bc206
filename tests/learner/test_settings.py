"""Settings of the learner: the learning rate at each step, and what DeepSpeed is told."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.learner.settings import (
    LearnerSettings,
    engine_config,
    learning_rate_at,
    seed_dropout,
    weight_groups,
)
from schemas.config.loss import LossConfig
from schemas.config.train import TrainSection
from schemas.randomness import derived_seed

PEAK = 2e-3


def section(**fields: Any) -> TrainSection:
    return TrainSection(learning_rate=PEAK, sequences_per_step=8, **fields)


def reference(step: int, train: TrainSection) -> float:
    """Warm-up in equal parts, then peak or decay between peak and floor, then floor."""
    if step < train.warmup_steps:
        return PEAK * sum(1 / train.warmup_steps for _ in range(step + 1))
    if train.schedule == "constant" or train.decay_steps is None:
        return PEAK
    floor = PEAK * train.decay_floor
    if step >= train.decay_steps:
        return floor
    done = (step - train.warmup_steps) / (train.decay_steps - train.warmup_steps)
    if train.schedule == "linear":
        return PEAK + done * (floor - PEAK)
    return floor + (PEAK - floor) * math.cos(math.pi * done / 2) ** 2


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 10),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_every_step_has_the_rate_of_the_definition(
    schedule: str, warmup: int, decay: int, floor: float
) -> None:
    train = section(
        schedule=schedule, warmup_steps=warmup, decay_steps=warmup + decay, decay_floor=floor
    )
    for step in range(warmup + decay + 5):
        assert learning_rate_at(step, train) == pytest.approx(reference(step, train), rel=1e-9)


def test_a_warmup_has_no_step_at_rate_nought_and_reaches_the_peak() -> None:
    rates = [learning_rate_at(step, section(warmup_steps=4)) for step in range(6)]
    assert rates == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK, PEAK])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_falls_from_the_peak_to_the_floor_and_stays_there(schedule: str) -> None:
    train = section(schedule=schedule, warmup_steps=3, decay_steps=20, decay_floor=0.25)
    rates = [learning_rate_at(step, train) for step in range(3, 40)]
    assert rates[0] == PEAK
    assert all(one > other for one, other in zip(rates[:17], rates[1:18], strict=True))
    assert rates[17:] == pytest.approx([PEAK / 4] * 20)


@pytest.mark.parametrize("decay", [1, 5, 6])
def test_a_decay_that_ends_inside_the_warmup_is_a_step_down(decay: int) -> None:
    train = section(schedule="linear", warmup_steps=5, decay_steps=decay, decay_floor=0.1)
    assert learning_rate_at(4, train) == PEAK
    assert learning_rate_at(6, train) == pytest.approx(PEAK / 10)


@given(
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["cpu", "cuda"]),
)
def test_deepspeed_is_told_what_the_section_says(
    dtype: str, stage: int, offload: bool, device: str
) -> None:
    train = section(
        dtype=dtype,
        zero_stage=stage,
        offload_optimizer=offload and stage > 0,
        device=device,
        max_grad_norm=0.25,
    )
    settings = LearnerSettings(train, LossConfig(kind="forward_kl"))
    found = engine_config(settings)
    assert found["gradient_accumulation_steps"] == 1
    assert found["gradient_clipping"] == 0.25
    assert found["bf16"]["enabled"] == (dtype == "bfloat16")
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    zero = found["zero_optimization"]
    assert zero["stage"] == (stage if dtype == "float32" else {0: 2, 1: 2}.get(stage, stage))
    pinned = {"device": "cpu", "pin_memory": device == "cuda"}
    assert zero.get("offload_optimizer") == (pinned if offload and stage else None)


def test_what_is_left_out_depends_on_seed_step_and_process() -> None:
    drawn = set()
    with torch.random.fork_rng():
        for given_ in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]:
            seed_dropout(*given_)
            first = torch.rand(4).tolist()
            seed_dropout(*given_)
            assert torch.rand(4).tolist() == first
            drawn.add(tuple(first))
    assert len(drawn) == 4


def test_what_is_left_out_is_what_torch_draws_from_that_seed() -> None:
    with torch.random.fork_rng():
        seed_dropout(1, 2, 3)
        found = torch.rand(4)
        torch.manual_seed(derived_seed("dropout", 1, 2, 3))
        assert torch.equal(torch.rand(4), found)


LORA = {"rank": 2, "alpha": 4.0, "target_modules": "all-linear"}


class Small(nn.Module):
    """A table of ids, a head tied to it, one that is not, a norm, biases, a convolution."""

    def __init__(self) -> None:
        """Make them."""
        super().__init__()
        self.table, self.tied = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.tied.weight = self.table.weight
        self.head, self.norm = nn.Linear(4, 5), nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 2, bias=False)
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


@pytest.mark.parametrize(
    ("fields", "decays", "keeps"),
    [
        ({"weight_decay": 0.1}, ["conv.weight", "head.weight"], 4),
        ({"weight_decay": 0.1, "decay_all": True}, None, 0),
        ({"weight_decay": 0.0}, None, 0),
        ({"weight_decay": 0.1, "lora": LORA}, None, 0),
    ],
)
def test_weights_that_are_no_matrices_or_are_looked_up_by_id_do_not_decay(
    fields: dict[str, Any], decays: list[str] | None, keeps: int
) -> None:
    module, train = Small(), section(**fields)
    names = {id(weight): name for name, weight in module.named_parameters()}
    first, *rest = weight_groups(module, train)
    found = sorted(names[id(weight)] for weight in first["params"])
    assert first["weight_decay"] == train.weight_decay
    assert found == (decays or sorted(set(names.values()) - {"frozen"}))
    assert [(len(group["params"]), group["weight_decay"]) for group in rest] == [(keeps, 0.0)] * (
        keeps > 0
    )
