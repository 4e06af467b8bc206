"""Adapter folders in PEFT's format: what they say, what identifies them, which kind they are.

Promises: an identity covers what changes numbers alone, not where the base lies. Loads no torch.
"""

from pathlib import Path
from typing import Any

from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.tensors import read_header
from pipeline.store.disk.files import file_sha256
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint
from schemas.foreign import shown

ADAPTER_CONFIG = "adapter_config.json"

ADAPTER_WEIGHTS = "adapter_model.safetensors"

PLACES = ("base_model_name_or_path", "revision")
"""Settings that say where the base is."""

VOLATILE = (*PLACES, "auto_mapping", "inference_mode", "peft_version", "task_type")
"""Settings that change no number."""

PLAIN = {
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
}
"""Settings that an adapter of low-rank products alone may have."""

NOTHING: tuple[Any, ...] = (None, False, "", "none", [], {})

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base's weights as they are."""

ENDS = (
    *("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embeddings", "shared"),
    *("lm_head", "embed_out", "output_layer"),
)
"""Names of embeddings and heads."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter: transformers takes one with this file for one."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return what an adapter's configuration says.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        settings = read_object(folder / ADAPTER_CONFIG)
    except Unusable as error:
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG} is no adapter configuration of PEFT: it {error}. Save the "
            "adapter again with save_pretrained"
        ) from error
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or not kind:
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG} is no adapter configuration of PEFT: peft_type is "
            f"{shown(kind)}, expected a kind such as 'LORA'. Save the adapter again with "
            "save_pretrained"
        )
    return settings


def adapter_weights(folder: Path) -> Path:
    """Return the file with an adapter's weights.

    Raises:
        ConfigError: there is none.
    """
    if (folder / ADAPTER_WEIGHTS).is_file():
        return folder / ADAPTER_WEIGHTS
    raise ConfigError(
        f"{folder} has no {ADAPTER_WEIGHTS}: it is not a whole adapter. Weights in other files, "
        "such as adapter_model.bin, are never loaded: save the adapter again with save_pretrained"
    )


def adapter_identity(folder: Path) -> dict[str, str]:
    """Return what identifies an adapter's numbers, its base left out.

    Raises:
        ConfigError: it is not whole.
    """
    weights = adapter_weights(folder)
    return {
        "weights": fingerprint(file_sha256(weights)),
        "config": settings_digest(adapter_settings(folder)),
    }


def settings_digest(settings: dict[str, Any]) -> str:
    """Return the digest of an adapter's settings, without those that change no number."""
    kept = {name: value for name, value in settings.items() if name not in VOLATILE}
    kept = {name: value for name, value in kept.items() if value not in NOTHING}
    for name, value in kept.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            kept[name] = sorted(value)  # PEFT writes sets, in any order
    return fingerprint(kept)


def why_not_plain(folder: Path) -> str | None:
    """Return what makes an adapter more than low-rank products beside linear layers, or None.

    Raises:
        ConfigError: it is not whole.
    """
    settings = adapter_settings(folder)
    if settings["peft_type"] != "LORA":
        return f"peft_type = {settings['peft_type']!r}"
    start = settings.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        return f"init_lora_weights = {start!r}"
    known = {*PLAIN, *VOLATILE, "init_lora_weights"}
    for name, value in sorted(settings.items()):
        if name not in known and value not in NOTHING:
            return f"{name} = {value!r}"
    adapter_weights(folder)
    ends = [name for name in adapted_layers(folder) if name in ENDS]
    return f"it changes {ends[0]}" if ends else None


def adapted_layers(folder: Path) -> list[str]:
    """Return the last names of the layers that an adapter in safetensors stands beside, sorted.

    Raises:
        ConfigError: its file is damaged.
    """
    try:
        names = read_header(folder / ADAPTER_WEIGHTS)
    except Unusable as error:
        raise ConfigError(f"{folder / ADAPTER_WEIGHTS} {error}") from error
    layers = [name.split(".lora_")[0] for name in names if ".lora_" in name]
    return sorted({layer.rsplit(".", 1)[-1] for layer in layers})


def largest_rank(folder: Path) -> int:
    """Return the rank of the widest layer of an adapter of low-rank products."""
    settings = adapter_settings(folder)
    return max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
