"""Heads read from models, and models whose head is another one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from pipeline.models.head import check_head, head_of
from schemas.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "Qwen3": Qwen3Config,
    "HyperCLOVA X": partial(HyperCLOVAXConfig, logits_scaling=0.5),
    "Llama": LlamaConfig,
    "Gemma2": partial(Gemma2Config, final_logit_softcapping=3.0),
    "Cohere2": partial(Cohere2Config, logit_scale=0.25),
    "Granite": partial(GraniteConfig, logits_scaling=8.0),
}
PROBE = torch.tensor([[1, 5, 9, 30, 47], [1, 7, 7, 3, 2]])


def tiny(name: str, **changes: Any) -> PreTrainedModel:
    """A random model whose logits are large enough for soft caps and multipliers to show."""
    torch.manual_seed(0)
    config = CONFIGS[name](**SIZES, **changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call] # transformers' gap
    with torch.no_grad():
        head_of(model).weight_VH.mul_(100)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_of_a_model_gives_its_logits(name: str, tied: bool) -> None:
    model = tiny(name, tie_word_embeddings=tied)
    head = head_of(model)
    check_head(model, head, PROBE)
    assert head.weight_VH.requires_grad
    assert (head.weight_VH is model.get_input_embeddings().weight) == tied
    assert (head.softcap is not None) == (name == "Gemma2")
    assert head.scale == {"Cohere2": 0.25, "Granite": 0.125, "HyperCLOVA X": 0.5}.get(name, 1.0)


def test_a_bfloat16_model_passes_the_check() -> None:
    model = tiny("Gemma2").bfloat16()
    check_head(model, head_of(model), PROBE)


@pytest.mark.parametrize("training", [False, True])
def test_the_check_restores_the_training_mode_and_ignores_dropout(training: bool) -> None:
    model = tiny("Qwen3", attention_dropout=0.5).train(training)
    check_head(model, head_of(model), PROBE)
    assert model.training == training


@pytest.mark.parametrize(
    ("name", "change"),
    [("Gemma2", {"softcap": None}), ("Cohere2", {"scale": 1.0}), ("Llama", {"softcap": 3.0})],
)
def test_a_head_that_differs_from_its_model_is_refused(name: str, change: dict[str, Any]) -> None:
    model = tiny(name)
    with pytest.raises(ConfigError, match=f"{name}ForCausalLM: logits differ"):
        check_head(model, replace(head_of(model), **change), PROBE)


class Postprocessed(LlamaForCausalLM):  # type: ignore[no-untyped-call] # transformers' gap
    """A model that masks one logit after its head, as some unknown architecture might."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output with one logit changed."""
        out = super().forward(*args, **kwargs)
        out.logits[..., 3] = torch.finfo(out.logits.dtype).min
        return out


def test_a_model_that_changes_its_logits_otherwise_is_refused_by_name() -> None:
    model = Postprocessed(LlamaConfig(**SIZES))  # type: ignore[no-untyped-call] # transformers' gap
    with pytest.raises(ConfigError, match="Postprocessed"):
        check_head(model, head_of(model), PROBE)


def test_a_model_without_a_plain_linear_head_is_refused() -> None:
    model = tiny("Llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match="Sequential, expected a plain Linear"):
        head_of(model)
