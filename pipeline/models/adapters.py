"""Adapter folders in PEFT's format: what they say, what identifies them, which kind they are.

Promises: an identity covers what changes numbers alone, not where the base lies. Loads no torch.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.store.storage import file_sha256
from schemas.errors import ConfigError
from schemas.fingerprint import fingerprint

ADAPTER_CONFIG = "adapter_config.json"

ADAPTER_WEIGHTS = "adapter_model.safetensors"

WEIGHT_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")

PLACES = ("base_model_name_or_path", "revision")
"""Settings that say where the base is."""

VOLATILE = (*PLACES, "auto_mapping", "inference_mode", "peft_version", "task_type")
"""Settings that change no number."""

PLAIN = {
    "alpha_pattern",
    "exclude_modules",
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

ENDS = ("embed_tokens", "wte", "lm_head")
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
        settings = dict(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))
        kind = settings["peft_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG} is no adapter configuration of PEFT ({error!r}): save the "
            "adapter again with save_pretrained"
        ) from error
    return settings | {"peft_type": str(kind)}


def adapter_weights(folder: Path) -> Path:
    """Return the file with an adapter's weights.

    Raises:
        ConfigError: there is none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder} has no {ADAPTER_WEIGHTS}: it is not a whole adapter")


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
    if adapter_weights(folder).name != ADAPTER_WEIGHTS:
        return f"its weights are no {ADAPTER_WEIGHTS}"
    ends = [name for name in adapted_layers(folder) if name in ENDS]
    return f"it changes {ends[0]}" if ends else None


def adapted_layers(folder: Path) -> list[str]:
    """Return the last names of the layers that an adapter in safetensors stands beside, sorted."""
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    layers = [name.split(".lora_")[0] for name in names if ".lora_" in name]
    return sorted({layer.rsplit(".", 1)[-1] for layer in layers})


def largest_rank(folder: Path) -> int:
    """Return the rank of the widest layer of an adapter of low-rank products."""
    settings = adapter_settings(folder)
    return max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
