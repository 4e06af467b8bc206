"""What `config.json` and `generation_config.json` say, held against what is possible. Pure.

Promises: what it finds wrong no release of transformers loads, or it loads it as something else;
fields that it does not know pass.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.foreign import shown

CONFIG, GENERATION = "config.json", "generation_config.json"

LARGEST = {
    **dict.fromkeys(("vocab_size", "intermediate_size", "n_inner", "ffn_dim"), 1 << 24),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1 << 14),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), 1 << 16),
    **dict.fromkeys(("head_dim", "num_kv_heads", "num_local_experts", "num_experts"), 1 << 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 1 << 40),
}
"""Sizes → the largest that is believed. Numbers of a list, and null, are left to the model."""

MAY_BE_NONE_AT_ALL = ("num_experts", "num_local_experts")
"""Sizes that may be 0."""

WIDEST = 64
"""Times its hidden size that a model may be wide inside; known models have up to 16."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")

SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping", "initializer_range")
"""Numbers, or null, that logits or weights are multiplied with."""

DROPOUTS = (
    *("attention_dropout", "hidden_dropout", "dropout", "residual_dropout", "embedding_dropout"),
    *("attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout_prob"),
)
"""Shares from 0 to 1."""

HEAD_SIZES = ("head_dim", "kv_channels", "attention_hidden_size", "attention_head_dim")
"""Settings with which the width need not be a multiple of the number of heads."""

ROPE_TYPES = (
    *("default", "linear", "dynamic", "yarn", "longrope", "llama3", "su", "mrope"),
    "proportional",
)

OTHER_HEADS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForMaskedLM", "ForImageClassification", "ForRewardModeling"),
    "ForSpeechSeq2Seq",
)
"""Ends of class names that are of models which give no next token."""

DTYPES = ("auto", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")

ELSEWHERE = ("transformers_weights", "fusion_config")
"""Settings with which transformers reads other weights, or computes otherwise, than other engines.
"""

ID_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id")

NO_PADDING = -1
"""What old releases write where a model has no padding."""


def size_of(settings: Mapping[str, Any], *names: str) -> int | None:
    """Return the first whole number that settings, or those of the text model in them, have."""
    parts = (settings.get("text_config"), settings)
    found = (p.get(name) for p in parts if isinstance(p, Mapping) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def config_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong in the settings of a model."""
    yield from _kind_faults(settings)
    for name, part in _parts(settings):
        yield from (f"{name}{words}" for words in _size_faults(part))
        yield from (f"{name}{words}" for words in _shape_faults(part))
        yield from (f"{name}{words}" for words in _number_faults(part))
        yield from (f"{name}{words}" for words in id_faults(part, size_of(settings, "vocab_size")))


def id_faults(settings: Mapping[str, Any], vocab_size: int | None) -> Iterator[str]:
    """Yield what is wrong with the ids of special tokens."""
    for name in ID_FIELDS:
        value = settings.get(name)
        ids = value if isinstance(value, list) and name != "pad_token_id" else [value]
        for one in ids:
            if one is None or (one == NO_PADDING and name == "pad_token_id"):
                continue
            if type(one) is not int or one < 0 or (vocab_size is not None and one >= vocab_size):
                most = "" if vocab_size is None else f" to {vocab_size - 1} (vocab_size - 1)"
                yield f"{name} is {shown(one)}, expected an id from 0{most}, or null"


def quantization_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how a model is quantised, or None where it is not."""
    found: Any = settings.get("quantization_config")
    if found is None and isinstance(part := settings.get("text_config"), Mapping):
        found = part.get("quantization_config")
    return found if isinstance(found, Mapping) and found else None


def _parts(settings: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", settings
    text = settings.get("text_config")
    if isinstance(text, Mapping):
        yield "text_config.", text


def _kind_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    kind = settings.get("model_type")
    if not isinstance(kind, str) or not kind.strip():
        yield f"model_type is {shown(kind)}, expected the architecture's name, such as 'qwen3'"
    named = settings.get("architectures")
    if named is not None and not (isinstance(named, list) and all(type(n) is str for n in named)):
        yield f"architectures is {shown(named)}, expected a list of class names"
    elif named and all(name.endswith(OTHER_HEADS) for name in named):
        yield (
            f"architectures is {shown(named)}, expected a causal language model (…ForCausalLM): "
            "models with other heads give no next token"
        )
    if settings.get("is_encoder_decoder") is True:
        yield "is_encoder_decoder is true, expected a causal language model (a decoder only)"
    quantized: Any = settings.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    if quantized not in (None, {}) and not isinstance(method, str):
        yield (
            f"quantization_config is {shown(quantized)}, expected an object with quant_method, "
            "the name of the method"
        )
    for name in ELSEWHERE:
        if settings.get(name) is not None:
            yield f"{name} is {shown(settings[name])}, which opd does not follow: remove it"
    parts = settings.get("text_config", {})
    if parts is not None and not isinstance(parts, Mapping):
        yield f"text_config is {shown(parts)}, expected an object"


def _size_faults(part: Mapping[str, Any]) -> Iterator[str]:
    for name, largest in LARGEST.items():
        value = part.get(name)
        if value is None or (isinstance(value, list) and all(type(n) is int for n in value)):
            continue
        least = 0 if name in MAY_BE_NONE_AT_ALL else 1
        if type(value) is not int or not least <= value <= largest:
            yield f"{name} is {shown(value)}, expected a whole number from {least} to {largest:,}"


def _shape_faults(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield sizes that do not go together, where each is possible alone."""
    sizes = {name: value for name, value in part.items() if type(value) is int and value > 0}
    width = size_of(sizes, "hidden_size", "n_embd", "d_model")
    heads = size_of(sizes, "num_attention_heads", "n_head", "n_heads")
    groups = sizes.get("num_key_value_heads")
    own = any(part.get(name) is not None for name in HEAD_SIZES)
    if width and heads and width % heads and not own:
        yield f"the hidden size {width} is no multiple of {heads} attention heads"
    if heads and groups and heads % groups:
        yield f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
    inner = max(sizes.get("intermediate_size", 0), sizes.get("n_inner", 0), sizes.get("ffn_dim", 0))
    wide = max(inner, (heads or 0) * sizes.get("head_dim", 0))
    if width and wide > WIDEST * width:
        yield (
            f"the hidden size is {width}, and inside the model is {wide} wide: one of hidden_size, "
            "intermediate_size, head_dim and num_attention_heads is wrong"
        )


def _number_faults(part: Mapping[str, Any]) -> Iterator[str]:
    for name in (*EPSILONS, *SCALES, *DROPOUTS, "sliding_window"):
        value, most = part.get(name), 1.0 if name in DROPOUTS else math.inf
        if value is not None and not (_is_number(value, least=0.0) and value <= most):
            upper = " to 1" if name in DROPOUTS else ""
            yield f"{name} is {shown(value)}, expected a number from 0{upper}"
    for name in ("torch_dtype", "dtype"):
        value = part.get(name)
        word = value.removeprefix("torch.") if isinstance(value, str) else value
        if value is not None and word not in DTYPES and not isinstance(value, Mapping):
            yield f"{name} is {shown(value)}, expected one of {', '.join(DTYPES)}"
    theta = part.get("rope_theta")
    if theta is not None and not _is_number(theta, above=0.0):
        yield f"rope_theta is {shown(theta)}, expected a number above 0"
    for name in ("rope_scaling", "rope_parameters"):
        yield from _rope_faults(name, part.get(name))


def _rope_faults(name: str, rope: object) -> Iterator[str]:
    if rope is None:
        return
    if not isinstance(rope, Mapping):
        yield f"{name} is {shown(rope)}, expected an object or null"
        return
    for layer, inner in rope.items():  # settings of their own for each kind of layer
        if isinstance(inner, Mapping):
            yield from _rope_faults(f"{name}.{layer}", inner)
    for key in ("rope_type", "type"):
        kind = rope.get(key)
        if kind is not None and kind not in ROPE_TYPES:
            yield f"{name}.{key} is {shown(kind)}, expected one of {', '.join(ROPE_TYPES)}"
    for key in ("factor", "rope_theta"):
        value = rope.get(key)
        if value is not None and not _is_number(value, above=0.0):
            yield f"{name}.{key} is {shown(value)}, expected a number above 0"


def _is_number(value: object, *, least: float = -math.inf, above: float = -math.inf) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value >= least and value > above and value < math.inf
