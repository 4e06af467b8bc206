"""Every tensor of a model's files is read, every parameter is in them, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.models.accounting import require_read
from pipeline.models.loading import load_model
from schemas.errors import ConfigError
from tests.support.modelfolders import WEIGHTS, edit_config, source_of
from tests.support.tiny import make_model

LAYER = "model.layers.0"

Tensors = dict[str, Tensor]


def change(folder: Path, add: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | add(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def biases(_: Tensors) -> Tensors:
    return {f"{LAYER}.self_attn.q_proj.bias": torch.ones(128)}


def scales(_: Tensors) -> Tensors:
    return {f"{LAYER}.mlp.up_proj.weight_scale": torch.tensor(0.01)}


def another_layer(tensors: Tensors) -> Tensors:
    first = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    return {name.replace("layers.0", "layers.1"): tensor.clone() for name, tensor in first.items()}


def second_copy(tensors: Tensors) -> Tensors:
    return {"norm.weight": tensors["model.norm.weight"] + 1}


def classifier(_: Tensors) -> Tensors:
    return {"score.weight": torch.ones(2, 32)}


def large_mask(_: Tensors) -> Tensors:
    return {f"{LAYER}.self_attn.attention.bias": torch.ones(128)}


@pytest.mark.parametrize(
    ("add", "named"),
    [
        (biases, "self_attn.q_proj.bias"),
        (scales, "weight_scale.*belong to a quantisation"),
        (another_layer, "layers.1.*number of layers"),
        (second_copy, "model.norm.weight"),
        (classifier, "score.weight"),
        (large_mask, "attention.bias"),
    ],
)
def test_tensors_that_are_not_read_are_named_before_loading_and_at_it(
    folder: Path, add: Callable[[Tensors], Tensors], named: str
) -> None:
    change(folder, add)
    with pytest.raises(ConfigError, match=f"no place in Qwen3ForCausalLM.*{named}"):
        require_read(source_of(folder))
    with pytest.raises(ConfigError, match=f"no place in Qwen3ForCausalLM.*{named}"):
        load_model(source_of(folder), dtype="float32", device="cpu")


def zero_bias(_: Tensors) -> Tensors:
    return {f"{LAYER}.self_attn.q_proj.bias": torch.zeros(128)}


def frequencies(_: Tensors) -> Tensors:
    return {f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.ones(16)}


def tied_head(tensors: Tensors) -> Tensors:
    return {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def equal_copy(tensors: Tensors) -> Tensors:
    return {"norm.weight": tensors["model.norm.weight"].clone()}


def mask(_: Tensors) -> Tensors:
    return {f"{LAYER}.attn.bias": torch.ones(1, 1, 8, 8).tril().to(torch.uint8)}


@pytest.mark.parametrize("add", [zero_bias, frequencies, tied_head, equal_copy, mask])
def test_what_changes_no_number_may_be_left(
    folder: Path, add: Callable[[Tensors], Tensors]
) -> None:
    before = load_model(source_of(folder), dtype="float32", device="cpu").state_dict()
    change(folder, add)
    require_read(source_of(folder))
    after = load_model(source_of(folder), dtype="float32", device="cpu").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_layer_that_foretells_further_tokens_may_be_left(folder: Path) -> None:
    change(folder, another_layer)
    edit_config(folder, num_nextn_predict_layers=1)
    require_read(source_of(folder))


def test_a_parameter_that_no_file_has_is_named_before_loading(folder: Path) -> None:
    edit_config(folder, attention_bias=True)
    with pytest.raises(ConfigError, match=r"4 missing keys, such as model\.layers\.0"):
        require_read(source_of(folder))


def test_codes_are_no_weights_without_a_quantisation(folder: Path) -> None:
    change(folder, lambda _: {"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    for use in (require_read, lambda s: load_model(s, dtype="float32", device="cpu")):
        with pytest.raises(ConfigError, match=r"model\.norm\.weight.*format I8"):
            use(source_of(folder))


def test_of_a_quantised_model_only_biases_must_have_a_place(folder: Path) -> None:
    change(folder, scales)
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    require_read(source_of(folder))
    change(folder, biases)
    with pytest.raises(ConfigError, match=r"q_proj\.bias"):
        require_read(source_of(folder))


def test_a_head_of_its_own_under_a_tied_config_is_used(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "made", layers=1, tied=False)
    expected = load_model(source_of(folder), dtype="float32", device="cpu")
    edit_config(folder, tie_word_embeddings=True)
    require_read(source_of(folder))
    found = load_model(source_of(folder), dtype="float32", device="cpu")
    ids: Any = torch.arange(6)[None]
    with torch.inference_mode():
        assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)
