"""Loading of Hugging Face models onto a device. Torch is imported inside functions only."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.lora import merge_adapter
from pipeline.models.source import ModelSource, unreadable
from schemas.errors import CapacityError, ConfigError

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
        return merge_adapter(base, Path(source.location))
    import torch

    settle_libraries()
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = loader(
            source.location,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused by their names
        )
        _refuse_incomplete(source, report)
        loaded: PreTrainedModel = model.to(pick_device(device)).eval()
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise unreadable(source, error) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CapacityError(
            f"the model {source.location} does not fit the memory of {device}: {error}"
        ) from error
    return loaded


def pick_device(device: str) -> str:
    """Return a torch device: `auto` becomes a GPU where there is one.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {device!r}, but torch sees no GPU; use 'auto' or 'cpu'")
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise ConfigError(f"device = {device!r} is not a torch device") from error


def settle_libraries() -> None:
    """Keep transformers' bars and DeepSpeed's guess at the accelerator off the screen.

    To be called before a model class is imported: that imports accelerate, and so DeepSpeed.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    quieten: Any = disable_progress_bar
    quieten()


def _refuse_incomplete(source: ModelSource, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        found = sorted(str(name) for name in report.get(kind) or ())
        if found:
            raise ConfigError(
                f"the weights of {source.location} do not fit its config.json: {len(found)} "
                f"{kind.replace('_', ' ')}, such as {found[0]}; the model is damaged"
            )
