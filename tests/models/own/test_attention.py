"""Soft caps of attention are computed, in whatever way torch would rather compute attention."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.engines.opening import engine_version, open_engine
from pipeline.engines.start import Start
from pipeline.models.loading import load_model
from pipeline.models.own import attention
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError

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


def opened(source: ModelSource, dtype: str = "float32") -> None:
    section = EngineSection(device="cpu")
    open_engine(Start(source, section, dtype=dtype, use="score", max_tokens=60), print).close()


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one implementation compute scores that are twice as large."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setattr(attention, "_AGREED", set())
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def twice(module: Any, query: Any, *rest: Any, **given: Any) -> Any:
        return plain(module, 2 * query, *rest, **given)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", twice)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_implementations_differ_is_refused_in_words(
    dtype: str, tmp_path: Path, doubled: None
) -> None:
    source = make(tmp_path, None)
    words = "'sdpa' and 'eager' are .* apart.* nothing says which"
    for _ in range(2):
        with pytest.raises(ConfigError, match=words):
            opened(source, dtype)


def test_a_model_that_names_its_implementation_is_believed(tmp_path: Path, doubled: None) -> None:
    source, path = make(tmp_path, None), tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}))
    opened(source)


def test_a_comparison_leaves_the_implementation_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_AGREED", set())
    source = make(tmp_path, None)
    model: Any = load_model(source, dtype="float32", device="cpu")
    forwards: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    for _ in range(2):
        attention.require_agreement(model, source, tokens=40)
    assert len(forwards) == 2 and model.config._attn_implementation == "sdpa"
