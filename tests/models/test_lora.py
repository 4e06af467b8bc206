"""The learner of adapters: what learns and what stays, against PEFT in a plain torch loop."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.learner.learner import Learner
from pipeline.learner.settings import seed_dropout
from pipeline.models.adapters import adapter_settings
from pipeline.models.loading import load_model
from pipeline.models.lora import linear_layers, new_adapter, read_adapter, write_adapter
from pipeline.models.source import ModelSource
from schemas.config.train import LoraSection
from schemas.errors import ConfigError
from tests.support.learning import (
    ALL_AT_ONCE,
    FORWARD_KL,
    ONE_BY_ONE,
    RATE,
    SOME,
    Setup,
    Trained,
    Trainer,
    reference,
    rows,
    scored_round,
)
from tests.support.tiny import make_adapter

LORA = LoraSection(rank=6, alpha=12, target_modules=("q_proj", "o_proj", "down_proj"))
DROPPING = LORA.model_copy(update={"dropout": 0.3})


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Return a round whose student is an adapter."""
    folder = tmp_path_factory.mktemp("lora")
    with scored_round(folder) as made:
        adapter = make_adapter(folder / "adapter", Path(made.source.location))
        source = ModelSource(str(adapter), None, False, made.source)
        yield replace(made, source=source)


@pytest.fixture(scope="module")
def train(setup: Setup) -> Trainer:
    return Trainer(setup)


@pytest.fixture
def learners(setup: Setup) -> Iterator[Any]:
    """Return a maker of fresh learners that are closed at the end."""
    made: list[Learner] = []

    def make(**fields: Any) -> Learner:
        made.append(setup.learner(**{"lora": LORA, **fields}))
        return made[-1]

    yield make
    for learner in made:
        learner.close()


def base_of(setup: Setup, dtype: str = "float32") -> Any:
    return load_model(setup.source.whole, dtype=dtype, device="cpu")


def frozen(learner: Learner) -> dict[str, Tensor]:
    """Return copies of what must not change, gathered where it is split."""
    found: dict[str, Tensor] = {}
    for name, parameter in learner.student.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(
                [parameter], enabled=hasattr(parameter, "ds_id")
            ):
                found[name] = parameter.detach().clone()
    return found


def test_steps_equal_those_of_peft_in_a_plain_torch_loop(setup: Setup, train: Trainer) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(setup.source.whole.location)
    adapted: Any = PeftModel.from_pretrained(plain, setup.source.location, is_trainable=True)
    expected, found = reference(setup, FORWARD_KL, adapted.train()), train(lora=LORA)
    mine = {name.replace(".weight", ".default.weight"): t for name, t in found.state.items()}
    begun = read_adapter(Path(setup.source.location))
    for name, tensor in mine.items():
        assert (tensor - expected.state[name]).abs().max() < 2e-6, name
        assert (tensor - begun[name.replace(".default", "")]).abs().max() > RATE, name
    assert found.values("loss") == pytest.approx(expected.values("loss"), rel=1e-5)
    assert found.values("grad_norm") == pytest.approx(expected.values("grad_norm"), rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_the_adapter_learns_and_the_model_stays_bit_for_bit(
    setup: Setup, learners: Any, stage: int
) -> None:
    learner, begun = learners(zero_stage=stage), read_adapter(Path(setup.source.location))
    before, plan = frozen(learner), setup.plans(ALL_AT_ONCE)[0]
    learner.step(plan, setup.data, RATE)
    assert all(p.grad is None for p in learner.student.parameters() if not p.requires_grad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen(learner).items())
    assert len(before) == 24
    state = learner.full_state()
    assert state.keys() == begun.keys() and all(".lora_" in name for name in state)
    assert all(not torch.equal(tensor, begun[name]) for name, tensor in state.items())
    groups = learner._engine.optimizer.param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) in (
        0,  # stage 3 keeps flat parts of its own
        sum(tensor.numel() for tensor in begun.values()),
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_same_steps(train: Trainer, stage: int) -> None:
    plain, split = train(lora=LORA), train(ONE_BY_ONE, lora=LORA, zero_stage=stage)
    assert split.gap(plain) < 1e-6
    assert split.values("loss") == pytest.approx(plain.values("loss"), rel=1e-5)
    assert (split.logprobs - plain.logprobs).abs().max() < 1e-5


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_give_the_same_steps(train: Trainer, stage: int) -> None:
    found = train(lora=LORA, zero_stage=stage, activation_checkpointing=True)
    assert found.gap(train(lora=LORA)) < 1e-6


@pytest.mark.parametrize("stage", [0, 3])
def test_bfloat16_follows_float32(setup: Setup, train: Trainer, stage: int) -> None:
    exact, low = train(lora=LORA), train(SOME, lora=LORA, zero_stage=stage, dtype="bfloat16")
    assert low.values("loss") == pytest.approx(exact.values("loss"), rel=0.02)
    begun = read_adapter(Path(setup.source.location))
    wanted, found = (
        torch.cat([(t.float() - begun[name]).flatten() for name, t in sorted(one.state.items())])
        for one in (exact, low)
    )
    assert float(found @ wanted / (wanted @ wanted)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("lora", "fields"),
    [
        (DROPPING, {"zero_stage": 0, "dtype": "float32"}),
        (LORA, {"zero_stage": 3, "dtype": "float32"}),
        (LORA, {"zero_stage": 2, "dtype": "bfloat16"}),
    ],
    ids=["dropout", "stage-3", "bfloat16"],
)
def test_a_restored_state_is_small_and_goes_on_bit_for_bit(
    setup: Setup, learners: Any, tmp_path: Path, lora: LoraSection, fields: dict[str, Any]
) -> None:
    plans = setup.plans(ALL_AT_ONCE)

    def stepped(learner: Learner, first: int) -> list[Any]:
        found = []
        for index, plan in list(enumerate(plans))[first:]:
            seed_dropout(7, index, 0)
            found.append(learner.step(plan, setup.data, RATE))
        return found

    first, second = (learners(lora=lora, **fields) for _ in range(2))
    seed_dropout(7, 0, 0)
    first.step(plans[0], setup.data, RATE)
    first.save(tmp_path)
    saved = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert saved < base_of(setup).lm_head.weight.nbytes / 2
    quiet = stepped(first, 1)
    second.load(tmp_path)
    assert stepped(second, 1) == quiet
    assert Trained(second.full_state(), []).gap(Trained(first.full_state(), [])) == 0.0


def test_dropout_changes_the_steps_and_not_the_probe(setup: Setup, learners: Any) -> None:
    plan = setup.plans(ALL_AT_ONCE)[0]
    losses, probes = [], []
    for lora, seed in ((LORA, 1), (DROPPING, 1), (DROPPING, 2), (DROPPING, 1)):
        learner = learners(lora=lora)
        probes.append(learner.probe(rows(setup)))
        seed_dropout(seed, 0, 0)
        losses.append(learner.step(plan, setup.data, RATE)["loss"])
    assert len(set(losses)) == 3 and losses[1] == losses[3]
    assert all(torch.equal(probe, probes[0]) for probe in probes)


# --- a new adapter ---


def made(setup: Setup, lora: LoraSection, seed: int = 1) -> tuple[dict[str, Any], Any]:
    return new_adapter(base_of(setup), lora, seed=seed, base={"base_model_name_or_path": "there"})


def test_a_new_adapter_changes_nothing_and_is_peft_s(setup: Setup, tmp_path: Path) -> None:
    settings, weights = made(setup, LORA)
    write_adapter(tmp_path, settings, weights)
    assert settings["base_model_name_or_path"] == "there"
    plain: Any = AutoModelForCausalLM.from_pretrained(setup.source.whole.location)
    plain.eval()
    ids = torch.tensor([[3, 9, 4, 14]])
    with torch.no_grad():
        expected = plain(ids).logits
        adapted: Any = PeftModel.from_pretrained(plain, str(tmp_path))
        assert torch.equal(adapted(ids).logits, expected)
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha) == (6, 12)
    assert sum(t.numel() for t in weights.values()) == sum(
        p.numel() for n, p in adapted.named_parameters() if ".lora_" in n
    )


def test_a_new_adapter_depends_on_its_seed_alone(setup: Setup, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)
        (tmp_path / name).mkdir()
        settings, weights = made(setup, LORA, seed)
        write_adapter(tmp_path / name, settings, weights)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    assert files[0]["adapter_config.json"] == files[2]["adapter_config.json"]
    assert files[0]["adapter_model.safetensors"] != files[2]["adapter_model.safetensors"]


def test_all_linear_layers_but_the_head_can_get_an_adapter(setup: Setup) -> None:
    layers = linear_layers(base_of(setup))
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    settings, weights = made(setup, LORA.model_copy(update={"target_modules": "all-linear"}))
    assert len(weights) == 2 * len(layers)
    assert "lm_head" not in settings["target_modules"]


@pytest.mark.parametrize("name", ["c_attn", "lm_head", "proj", "mlp", "embed_tokens"])
def test_a_layer_that_is_not_there_is_told_with_those_that_are(setup: Setup, name: str) -> None:
    lora = LORA.model_copy(update={"target_modules": ("q_proj", name)})
    with pytest.raises(ConfigError, match=f"'{name}'.*down_proj, gate_proj.*v_proj"):
        made(setup, lora)


def test_an_adapter_that_is_no_plain_one_is_not_trained(
    setup: Setup, learners: Any, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "dora", Path(setup.source.whole.location), use_dora=True)
    assert adapter_settings(folder)["use_dora"] is True
    other = replace(setup, source=replace(setup.source, location=str(folder)))
    with pytest.raises(ConfigError, match="use_dora = True"):
        other.learner(lora=LORA)
