"""Loading of Hugging Face models onto a device. Torch is imported inside functions only."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.models.accounting import refuse_unread
from pipeline.models.border import explained, settle_libraries
from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.packages import package_faults
from pipeline.models.look.settings import CONFIG
from pipeline.models.merging import merge_adapter
from pipeline.models.own.attention import compute_cap
from pipeline.models.own.unpacking import (
    method_of,
    require_format,
    unpack,
    unpacking_settings,
    unpacks,
)
from pipeline.models.source import ModelSource, advice_of, local_folder, whole_settings
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(source: ModelSource, *, dtype: str, device: str) -> "PreTrainedModel":
    """Return a causal language model in evaluation mode on a device, an adapter merged into it.

    Raises:
        ConfigError: it cannot be read, or its weights do not fit its configuration.
        CapacityError: it does not fit the device.
    """
    if source.base is not None:
        base = load_model(source.base, dtype=dtype, device=device)
        merged = merge_adapter(base, Path(source.location))
        _refuse_unbounded(source, merged, dtype)
        return merged
    import torch

    settle_libraries()
    from transformers import AutoModelForCausalLM, GenerationConfig

    require_packages(source)
    require_format(source.words, method_of(whole_settings(source)), dtype)
    place = pick_device(device)
    loader: Any = AutoModelForCausalLM.from_pretrained
    with explained(f"cannot load {source.words}", blame=source.blame, advice=advice_of(source)):
        model, report = loader(
            source.location,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            use_safetensors=True,
            generation_config=cast(Any, GenerationConfig)(),  # the model's own is not looked at
            ignore_mismatched_sizes=True,  # so that they are reported, and refused by their names
            **_unpacked(source),
        )
        refuse_unread(source, model, report)
        unpack(model, unpacks(whole_settings(source)), dtype)
        compute_cap(model)
        loaded: PreTrainedModel = model.to(place).eval()
    _refuse_unbounded(source, loaded, dtype)
    return loaded


def _unpacked(source: ModelSource) -> dict[str, Any]:
    """Return what has transformers unpack quantised weights when it loads them."""
    settings = unpacking_settings(whole_settings(source))
    return {} if settings is None else {"config": settings}


def empty_model(source: ModelSource) -> "PreTrainedModel":
    """Return a model without weights, for the names of its layers.

    Raises:
        ConfigError: transformers cannot make it.
    """
    import torch

    settle_libraries()
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    settings, trust = whole_settings(source), source.trust_remote_code
    with explained(f"cannot load {source.words}", blame=source.blame, advice=advice_of(source)):
        with torch.device("meta"):
            model: PreTrainedModel = make(settings, trust_remote_code=trust)
        return model


def require_packages(source: ModelSource) -> None:
    """Make sure that transformers has what it needs to load a model.

    Raises:
        ConfigError: a package is not installed.
    """
    folder = local_folder(source.whole)
    if folder is None or not (folder / CONFIG).is_file():
        return
    try:
        lacking = list(package_faults(read_object(folder / CONFIG)))
    except Unusable as error:
        raise source.blame(f"cannot load {source.words}: {folder / CONFIG} {error}") from error
    if lacking:
        raise ConfigError(f"cannot load {source.words}: in {folder / CONFIG}, {lacking[0]}")


def require_causal(source: ModelSource) -> None:
    """Make sure that transformers knows a model's architecture as a causal language model.

    Raises:
        ConfigError: it does not.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    settings = whole_settings(source)
    kind = settings.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not source.trust_remote_code:
        raise source.blame(
            f"cannot load {source.words}: model_type {kind!r} of its config.json is no causal "
            "language model for transformers: give a model that predicts the next token"
        )


def pick_device(device: str) -> str:
    """Return a torch device that is there: `auto` becomes a GPU where there is one.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        count = 1 if found.type == "cpu" else torch.get_device_module(found).device_count()
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"device = {device!r} is not a torch device") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        count = 0  # a driver that does not work
    check_there(device, found.index or 0, count)
    return str(found)


def check_there(device: str, index: int, count: int) -> None:
    """Make sure that a device is one of those that torch sees.

    Args:
        device: its name, as messages have it.
        index: its number among those of its kind.
        count: how many of its kind torch sees.

    Raises:
        ConfigError: it is not.
    """
    if count == 0:
        kind = "GPU" if device.startswith("cuda") else f"{device.partition(':')[0]} device"
        raise ConfigError(f"device = {device!r}, but torch sees no {kind}; use 'auto' or 'cpu'")
    if index >= count:
        kind = device.partition(":")[0]
        last = f"{kind}:0 to {kind}:{count - 1}" if count > 1 else f"{kind}:0 alone"
        raise ConfigError(
            f"device = {device!r}, but torch sees {last} here: name one of these, or 'auto'. "
            "CUDA_VISIBLE_DEVICES decides which GPUs there are, and renumbers them"
        )


def _refuse_unbounded(source: ModelSource, model: "PreTrainedModel", dtype: str) -> None:
    """Refuse weights that are not finite: one pass over them, without a copy."""
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in model.named_parameters():
        if type(tensor.data) is not torch.Tensor or tensor.dtype not in plain or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise source.blame(
                f"cannot use {source.words}: its weight {name} holds NaN or an infinity in "
                f"{dtype}, expected finite numbers. Copy the weights again; where they are whole, "
                "they are too large for this number format: set a wider dtype"
            )
