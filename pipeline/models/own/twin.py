"""A model's twin: the same weights, computed by another implementation of attention.

For models whose layers choose their attention when they are built. Promises: the twin shares every
tensor, so it takes no memory; the model stays as it is. Torch is imported inside functions only.
"""

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def twin_of(model: "PreTrainedModel", implementation: str) -> "PreTrainedModel | None":
    """Return a model's twin; None where its class has no such implementation.

    Args:
        model: the model, as it was loaded.
        implementation: of attention, as transformers calls it.

    Raises:
        AttributeError: the class builds other layers for it.
    """
    import torch

    build: Any = type(model)
    try:
        with torch.device("meta"):
            twin: Any = build._from_config(
                copy.deepcopy(model.config), attn_implementation=implementation, dtype=model.dtype
            )
    except Exception:  # whatever a class raises that does not know it
        return None
    for name, module in model.named_modules():
        _share(twin, name, module)
    ready: PreTrainedModel = twin.eval()
    return ready


def _share(twin: "PreTrainedModel", name: str, module: "nn.Module") -> None:
    """Give a layer's tensors to the twin's layer of that name; without parts, the layer itself."""
    if not module._parameters and not module._buffers:
        return
    if name and next(module.children(), None) is None:
        twin.set_submodule(name, module, strict=True)  # a quantisation may have put it there
        return
    own = twin.get_submodule(name)
    own._parameters, own._buffers = module._parameters, module._buffers


def without_second_alibi(twin: "PreTrainedModel") -> bool:
    """Have a Falcon's `eager` attention add ALiBi once; return whether it is such a model.

    Releases of transformers add it to the mask, which all implementations read, and again to the
    scores of `eager`. What `sdpa` gives is what the model was trained with.
    """
    if not adds_alibi(twin.config):
        return False
    for module in twin.modules():
        if hasattr(module, "inv_norm_factor"):
            module.register_forward_pre_hook(_no_alibi, with_kwargs=True)
    return True


def adds_alibi(settings: Any) -> bool:
    """Return whether a model's settings are those of a Falcon with ALiBi."""
    return settings.model_type == "falcon" and bool(settings.alibi)


def _no_alibi(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, given | {"alibi": given["alibi"].new_zeros(given["alibi"].shape)}
