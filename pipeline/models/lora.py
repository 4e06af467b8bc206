"""Low-rank adapters inside a transformers model: made, attached, read back.

Promises: only an adapter's weights want gradients; their names in a folder are PEFT's, so that any
program that knows PEFT's format reads it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PLACES,
    adapter_settings,
    adapter_weights,
    why_not_plain,
)
from pipeline.models.border import explained
from schemas.config.train import LoraSection
from schemas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


NAME = "default"
"""What PEFT calls the one adapter of a model."""

PREFIX = "base_model.model."
"""Begin of every name in PEFT's weight files."""

SHOWN = 20

OTHER_LAYERS = "Name other layers in train.lora.target_modules"


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Return the names of a model's linear layers that an adapter may stand beside."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers, by another name

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers' gap
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def new_adapter(
    model: "PreTrainedModel", lora: LoraSection, *, seed: int, base: Mapping[str, str | None]
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Put an adapter that adds nothing yet into a model; return its settings and weights.

    Args:
        model: becomes the adapted model.
        lora: rank, strength and layers.
        seed: root of the random half of the weights.
        base: what the settings say of where the base is.

    Raises:
        ConfigError: the model has no layer of a name.
    """
    import torch
    from peft import LoraConfig

    targets = _targets(linear_layers(model), lora.target_modules)
    config: Any = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # a fraction works too
        target_modules=targets,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )
    what = f"train.lora cannot put an adapter beside layers of {model.name_or_path}"
    with explained(what, advice=OTHER_LAYERS), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config)
    settings = _plain_words(config.to_dict()) | dict(base) | {"inference_mode": True}
    weights = {name: tensor.detach().float() for name, tensor in adapter_parameters(model).items()}
    return settings, weights


def attach_adapter(model: "PreTrainedModel", folder: Path, *, dropout: float) -> None:
    """Put an adapter of a folder into a model, ready to be trained; the rest is frozen.

    Raises:
        ConfigError: it is of a kind that is not trained here, or does not fit the model.
    """
    import torch
    from peft import LoraConfig

    if reason := why_not_plain(folder):
        raise ConfigError(
            f"the adapter {folder} cannot be trained on: {reason}. Merge it into its base with "
            "PEFT's merge_and_unload and give that folder as student.model"
        )
    with explained(f"the adapter {folder} does not fit its base {model.name_or_path}"):
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.lora_dropout, config.inference_mode = dropout, False
        _inject(model, config)
    tensors, mine = read_adapter(folder), adapter_parameters(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in mine.items()}
    if shapes != wanted:
        name = next(n for n in sorted({*shapes, *wanted}) if shapes.get(n) != wanted.get(n))
        raise ConfigError(
            f"the adapter {folder} does not fit its base: {name} has shape {shapes.get(name)} in "
            f"the folder and {wanted.get(name)} in the model"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.data = tensors[name].to(parameter.device, torch.float32)


def check_targets(model: "PreTrainedModel", lora: LoraSection) -> None:
    """Make sure that a model has the layers that are to get an adapter.

    Raises:
        ConfigError: it has none of a name.
    """
    _targets(linear_layers(model), lora.target_modules)


def check_continued(folder: Path, lora: LoraSection, model: "PreTrainedModel") -> None:
    """Make sure that an adapter is the one that a configuration describes.

    Raises:
        ConfigError: its rank, strength or layers are others.
    """
    settings, layers = adapter_settings(folder), linear_layers(model)
    found = settings.get("target_modules")
    listed = "all-linear" if found == "all-linear" else tuple(found or ())
    pairs = {
        "rank": (settings.get("r"), lora.rank),
        "alpha": (settings.get("lora_alpha"), lora.alpha),
        "target_modules": (_targets(layers, listed), _targets(layers, lora.target_modules)),
    }
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigError(
                f"student.model is the adapter {folder}, which train.lora continues: its {name} is "
                f"{theirs!r}, but train.lora.{name} gives {ours!r}. Set it to the adapter's, or "
                "merge the adapter into its base first to train another one"
            )


def adapter_parameters(model: Any) -> dict[str, "Tensor"]:
    """Return the weights of a model's adapter by PEFT's names in files; the parameters themselves.

    They are what wants gradients.
    """
    return {
        PREFIX + name.replace(f".{NAME}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def read_adapter(folder: Path) -> dict[str, "Tensor"]:
    """Return an adapter's weights by their names in the file.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    from safetensors.torch import load_file

    path = adapter_weights(folder)
    with explained(f"the weights of the adapter {folder} cannot be read"):
        return load_file(path)


def write_adapter(
    folder: Path, settings: Mapping[str, Any], weights: "Mapping[str, Tensor]"
) -> None:
    """Write the settings and weights of an adapter; the same values give the same bytes.

    Raises:
        DataError: a tensor is empty, as partitioned parameters are when they were not gathered.
    """
    from safetensors.torch import save_file

    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if empty or not weights:
        raise DataError(f"export of {len(empty)} empty tensors of an adapter: not gathered")
    text = json.dumps(dict(settings), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous().float() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _targets(layers: Iterable[str], wanted: "str | Iterable[str]") -> list[str]:
    """Return the names of layers as PEFT matches them, sorted; a name matches whole parts."""
    leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
    if not leaves:
        raise ConfigError(
            "train.lora: the student has no linear layer that an adapter may stand beside; remove "
            "[train.lora] to train all its weights"
        )
    if isinstance(wanted, str):
        return leaves
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ConfigError(
                f"train.lora.target_modules has {target!r}, but the student has no linear layer "
                f"of that name; it has {', '.join(leaves[:SHOWN]) or 'none'}"
            )
    return sorted(set(wanted))


def _inject(model: Any, config: Any) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model, adapter_name=NAME)


def _plain_words(value: Any) -> Any:
    """Return a JSON value whose sets are sorted lists and whose whole numbers are integers."""
    if isinstance(value, Mapping):
        return {str(name): _plain_words(item) for name, item in value.items() if name not in PLACES}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain_words(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
