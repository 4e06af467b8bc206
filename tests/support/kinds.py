"""Tiny random models of many kinds: what keeps something between tokens that is not attention."""

from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.models.source import ModelSource

BASE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
STRANGE: dict[str, dict[str, Any]] = {
    "Qwen3Next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "FalconH1": {**MAMBA, "mamba_d_ssm": 64},
    "Bamba": {**MAMBA, "attn_layer_indices": [1]},
    "Jamba": {
        **{"num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
        **{"attn_layer_period": 2, "attn_layer_offset": 1},
    },
    "Mamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 1},
    "Mistral": {"sliding_window": 6},
    "Bart": {**DECODER, "is_decoder": True},
    "Llama4": {
        **{"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
        **{"attention_chunk_size": 6, "no_rope_layers": [1, 0]},
    },
}
"""Kinds of models → their settings: linear attention, convolutions, state spaces, windows, chunks,
and positions that cannot be given."""

CONFIGS = {"Llama4": "Llama4TextConfig"}


def make_kind(folder: Path, kind: str, **settings: Any) -> ModelSource:
    """Write a random model and return where it is.

    Args:
        folder: where it goes.
        kind: what its classes are called before `Config` and `ForCausalLM`.
        settings: of its config, in place of others.
    """
    config: Any = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))
    model: Any = getattr(transformers, f"{kind}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = model(config(**{**BASE, **STRANGE.get(kind, {}), **settings})).float()
        for name, weight in made.named_parameters():
            if "lm_head" in name:
                torch.nn.init.normal_(weight, std=0.6)  # sharper than random models are
    made.save_pretrained(folder)
    return ModelSource(str(folder), None, False)
