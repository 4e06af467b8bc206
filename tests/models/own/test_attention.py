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
from pipeline.models.own.twin import twin_of
from pipeline.models.source import ModelSource
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError
from tests.support.zoomodels import make_random

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
    copy: Any = load_model(make(tmp_path / "copy", None), dtype="float32", device="cpu")
    copy.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    for each in (model, model, copy):
        attention.require_agreement(each, source, tokens=40)
    assert len(forwards) == 2 and model.config._attn_implementation == "sdpa"


FALCON = {"new_decoder_architecture": False, "parallel_attn": False, "multi_query": False}


def falcon(folder: Path, *, alibi: bool) -> ModelSource:
    make_random(folder, "FalconConfig", "FalconForCausalLM", {**FALCON, "alibi": alibi})
    return ModelSource(str(folder), None, False)


def alibi_logprobs(model: Any) -> Any:
    """Return what the definition of ALiBi gives: slopes times positions, scaled like the scores."""
    config, decoder = model.config, model.transformer
    heads, size = config.num_attention_heads, config.head_dim
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    tokens = IDS.shape[1]
    later = torch.ones(tokens, tokens).triu(1).bool()
    hidden = decoder.word_embeddings(IDS[0])
    for layer in decoder.h:
        joined = layer.self_attention.query_key_value(layer.input_layernorm(hidden))
        query, key, value = joined.view(tokens, heads, 3, size).permute(2, 1, 0, 3)
        scores = query @ key.mT + slopes[:, None, None] * torch.arange(tokens)
        scores = (scores / size**0.5).masked_fill(later, -torch.inf)
        read = (scores.softmax(-1) @ value).transpose(0, 1).reshape(tokens, -1)
        hidden = hidden + layer.self_attention.dense(read)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(decoder.ln_f(hidden)).log_softmax(-1)


@torch.no_grad()
def test_a_falcon_with_alibi_adds_it_once(tmp_path: Path) -> None:
    model: Any = load_model(falcon(tmp_path, alibi=True), dtype="float32", device="cpu")
    found, expected = model(IDS).logits[0].log_softmax(-1), alibi_logprobs(model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("alibi", [False, True])
def test_a_model_that_cannot_change_its_attention_is_held_by_a_twin(
    alibi: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_AGREED", set())
    source = falcon(tmp_path, alibi=alibi)
    opened(source)
    assert len(attention._AGREED) == 1
    plain = torch.nn.functional.scaled_dot_product_attention

    def twice(query: Any, *rest: Any, **given: Any) -> Any:
        return plain(2 * query, *rest, **given)

    monkeypatch.setattr(attention, "_AGREED", set())
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", twice)
    with pytest.raises(ConfigError, match=r"'sdpa' and 'eager' are .* apart.* nothing says which"):
        opened(source)


def test_a_falcon_with_alibi_is_not_believed_where_it_names_eager(tmp_path: Path) -> None:
    source, path = falcon(tmp_path, alibi=True), tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}))
    with pytest.raises(ConfigError, match="adds ALiBi twice in a Falcon: remove attn_impl"):
        opened(source)


def test_a_twin_shares_every_tensor_and_leaves_the_model(tmp_path: Path) -> None:
    model: Any = load_model(falcon(tmp_path, alibi=False), dtype="float32", device="cpu")
    twin: Any = twin_of(model, "eager")
    places = [{p.data_ptr() for p in (*one.parameters(), *one.buffers())} for one in (model, twin)]
    assert places[0] == places[1]
    ways = [
        one.transformer.h[0].self_attention.config._attn_implementation for one in (model, twin)
    ]
    assert ways == ["sdpa", "eager"]
    assert twin_of(model, "flash_attention_9") is None
