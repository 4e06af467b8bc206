"""Models are looked at before they are loaded: what loads passes, all faults are told at once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.models.accounting import require_read
from pipeline.models.loading import load_model
from pipeline.models.look.folder import in_words, model_faults
from schemas.errors import ConfigError
from tests.support.modelfolders import edit_config, source_of
from tests.support.tiny import make_model

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
OLD_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "n_routed_experts": 4}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "num_key_value_heads": 4, "n_routed_experts": 4},
}
STATES = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    "Bloom": OLD_NAMES,
    "Cohere": {},
    "DeepseekV3": LATENT,
    "Falcon": {},
    "GPT2": OLD_NAMES,
    "GPTNeoX": {},
    "Gemma": {},
    "Gemma2": {},
    "GptOss": EXPERTS,
    "Granite": {},
    "Mamba2": STATES,
    "Mixtral": EXPERTS,
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "OPT": {"word_embed_proj_dim": 16, "ffn_dim": 64},
    "Olmo2": {},
    "Phi3": {},
    "Qwen3Moe": EXPERTS | {"moe_intermediate_size": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_that_loads_passes(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family]))
    kind = next(k for e in ("ForCausalLM", "LMHeadModel") if hasattr(transformers, k := family + e))
    with torch.random.fork_rng():
        getattr(transformers, kind)(config).save_pretrained(tmp_path)
    assert model_faults(tmp_path, learns=True) == []
    require_read(source_of(tmp_path))
    load_model(source_of(tmp_path), dtype="float32", device="cpu")


def test_all_faults_are_told_at_once_and_once_more_when_the_folder_changed(folder: Path) -> None:
    assert model_faults(folder) == []
    edit_config(folder, hidden_size=0, eos_token_id=-7)
    (folder / "tokenizer.json").write_text("{")
    found = model_faults(folder)
    assert [words.split()[0] for words in found] == [
        "config.json:",
        "config.json:",
        "tokenizer.json",
    ]
    assert in_words(folder, found).startswith(f"3 things are wrong in {folder}:")
    assert model_faults(folder) == found


def test_a_list_of_many_faults_is_cut(folder: Path) -> None:
    words = in_words(folder, [f"fault {n}" for n in range(100)])
    assert "fault 11" in words and "fault 12" not in words and "and 88 more" in words


def test_a_model_that_lies_in_files_by_index_passes(tmp_path: Path) -> None:
    make_model(tmp_path / "made", layers=1)
    model = load_model(source_of(tmp_path / "made"), dtype="float32", device="cpu")
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert model_faults(tmp_path / "parts") == []
    require_read(source_of(tmp_path / "parts"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_told(folder: Path) -> None:
    folder.chmod(0)
    assert "cannot be listed" in model_faults(folder)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_not_the_architecture(
    folder: Path, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"weight model\.norm\.weight holds NaN or an infinity"):
        load_model(source_of(folder), dtype="float32", device="cpu")


def test_weights_too_large_for_a_number_format_are_named(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(source_of(folder), dtype="bfloat16", device="cpu")
    with pytest.raises(ConfigError, match="set a wider dtype"):
        load_model(source_of(folder), dtype="float16", device="cpu")


def test_a_look_reads_what_transformers_writes_with_every_key(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    written = transformers.AutoConfig.from_pretrained(folder).to_dict()
    (folder / "config.json").write_text(json.dumps(written | settings))
    assert model_faults(folder, learns=True) == []
