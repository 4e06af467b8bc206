"""Soft caps of attention are computed, in whatever way torch would rather compute attention."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.engines.opening import engine_version
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource

IDS = torch.arange(3, 15)[None]


def make(folder: Path, cap: float | None) -> ModelSource:
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.8,
    }
    config = transformers.Gemma2Config(**sizes, attn_logit_softcapping=cap)
    torch.manual_seed(0)
    build: Any = transformers.Gemma2ForCausalLM
    build(config).float().save_pretrained(folder)
    return ModelSource(str(folder), None, False)


@pytest.mark.parametrize(("cap", "way"), [(0.5, "eager"), (None, "sdpa")])
def test_a_loaded_model_gives_what_its_definition_says(
    tmp_path: Path, cap: float | None, way: str
) -> None:
    source = make(tmp_path, cap)
    loaded: Any = load_model(source, dtype="float32", device="cpu")
    assert loaded.config._attn_implementation == way
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    by_definition = load(tmp_path, dtype=torch.float32, attn_implementation="eager")
    found, expected = (model(IDS).logits.log_softmax(-1) for model in (loaded, by_definition))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_scores_of_capped_attention_are_other_scores_than_those_without_it(tmp_path: Path) -> None:
    capped, plain = make(tmp_path / "capped", 50.0), make(tmp_path / "plain", None)
    assert engine_version("hf", capped) == f"{engine_version('hf')}+eager"
    assert engine_version("hf", plain) == engine_version("hf")
