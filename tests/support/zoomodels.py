"""Tiny random models of any architecture that transformers knows, made from configurations alone.

Promises: the same arguments give the same weights; every weight is drawn, also those that begin as
zero or one, so that a bias or a scale that is overlooked shows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.quickstart.addition import make_tokenizer
from tests.support.zoo import Entry

VOCAB = 48
"""Ids of a model; its tokenizer has fewer."""

LAYERS = 2

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 64),
    **dict.fromkeys(("embedding_size", "attention_hidden_size", "emb_dim", "dim_model"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("attention_heads", "decoder_attention_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("n_inner", "ffn_hidden_size", "d_inner", "mlp_hidden_size"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels"), 32),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 16),
    "qk_rope_head_dim": 16,
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    "initializer_range": 0.15,
    "logit_scale": 1.0,
}
"""Sizes by the names that configurations use for them."""

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shrunk(kind: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Return a tiny configuration: each size that its class knows by name, and what is asked.

    Args:
        kind: name of the configuration's class in transformers.
        changes: further settings; a table within replaces settings of a part.
    """
    make: Any = getattr(transformers, kind)
    return make(**_settings(make, changes or {}))


def _settings(make: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    known = _defaults(make)
    sizes = {name: size for name, size in {**SIZES, **IDS}.items() if name in known}
    parts = {
        name: _settings(part, changes.get(name, {}))
        for name, part in (getattr(make, "sub_configs", None) or {}).items()
        if isinstance(part, type) and part is not transformers.AutoConfig
    }
    return {**sizes, **parts, **{k: v for k, v in changes.items() if k not in parts}}


def _defaults(make: Any) -> set[str]:
    """Return the settings that a class has of its own accord, by all their names."""
    try:
        found = make()
    except Exception:  # it has parts that must be given  # noqa: BLE001
        return {"vocab_size"}
    return {*found.to_dict(), *getattr(make, "attribute_map", {}), *IDS}


def make_random(folder: Path, kind: str, model: str, changes: Mapping[str, Any]) -> Path:
    """Write a random model with a tokenizer and return the folder.

    Args:
        folder: where it goes.
        kind: name of the configuration's class.
        model: name of the model's class.
        changes: settings beside the sizes.
    """
    config = shrunk(kind, changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, model)(config).float()
        draw_all(made)
    made.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def draw_all(model: Any) -> None:
    """Move every weight a little, so that none is exactly zero or one."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.05 * torch.randn_like(parameter))


def make_entry(folder: Path, entry: Entry) -> Path:
    """Write a model of the zoo and return the folder."""
    model = entry.model or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[entry.kind]
    return make_random(folder, kind_of(entry.kind), model, entry.changes)


def kind_of(model_type: str) -> str:
    """Return the name of the configuration's class of a model_type."""
    return type(transformers.AutoConfig.for_model(model_type)).__name__
