"""Quantised weights as plain ones: what they stand for, in the number format that is asked for.

Kernels for quantised weights round activations, depend on neighbours and on the device. Promises:
where transformers can tell what the weights stand for, a model computes with exactly that.
Torch is imported inside functions only.
"""

from typing import TYPE_CHECKING, Any

from pipeline.models.look.settings import quantization_of
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_LOADING = ("compressed-tensors", "fp8", "metal", "mxfp4", "mxfp8")
"""Methods whose weights transformers unpacks while it loads them, where `dequantize` is set."""

AFTERWARDS = ("bitsandbytes", "torchao")
"""Methods whose weights are unpacked when the model stands."""

IN_16_BITS = ("awq", "gptq")
"""Methods whose weights kernels of a package read, which compute in 16 bits whatever is asked."""

ALWAYS = "compressed-tensors"
"""The method whose weights were unpacked in every release of opd."""


def unpacks(settings: Any) -> str | None:
    """Return the method of a quantisation that is unpacked, or None where nothing is.

    Args:
        settings: a model's configuration, with all its parts.
    """
    method = method_of(settings)
    return method if method in (*AT_LOADING, *AFTERWARDS) else None


def method_of(settings: Any) -> str | None:
    """Return the method of a quantisation, or None where a model is not quantised.

    Args:
        settings: a model's configuration, with all its parts.
    """
    found = quantization_of(settings.to_dict())
    return None if found is None else str(found.get("quant_method"))


def require_format(words: str, method: str | None, dtype: str) -> None:
    """Make sure that a model's kernels compute in the number format that is asked for.

    Args:
        words: what messages call the model.
        method: of its quantisation.
        dtype: number format.

    Raises:
        ConfigError: they do not.
    """
    if method in IN_16_BITS and dtype == "float32":
        raise ConfigError(
            f"cannot load {words} in float32: quantization_config.quant_method of its config.json "
            f"is {method!r}, whose kernels compute in 16 bits: set dtype = 'bfloat16' in the "
            "model's section"
        )


def unpacking_settings(settings: Any) -> Any | None:
    """Return a model's settings with which its weights are unpacked at loading, or None.

    Of compressed-tensors, transformers would do it at the first call of the whole model, of which
    we only call parts; of others, only where it sees no GPU that has kernels for them.

    Args:
        settings: a model's configuration, which is changed.
    """
    found = getattr(settings, "quantization_config", None)
    if not isinstance(found, dict) or found.get("quant_method") not in AT_LOADING:
        return None
    settings.quantization_config = {**found, "dequantize": True}
    return settings


def unpack(model: "PreTrainedModel", method: str | None, dtype: str) -> None:
    """Have a loaded model compute with what its quantised weights stand for.

    Args:
        model: the model.
        method: what `unpacks` says of it; where that is None, it stays as it is.
        dtype: number format of its weights.
    """
    import torch

    if method == "bitsandbytes":
        model.dequantize(dtype=getattr(torch, dtype))  # type: ignore[no-untyped-call] # its gap
    elif method == "torchao":
        _unpack_subclasses(model, dtype)
    if method is not None and dtype == "float32":
        for parameter in model.parameters():  # some are unpacked to bfloat16, which holds them
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()


def _unpack_subclasses(model: "PreTrainedModel", dtype: str) -> None:
    """Put plain tensors in the place of those that know themselves what they stand for."""
    import torch

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values: Any = parameter.data
            if type(values) is not torch.Tensor and hasattr(values, "dequantize"):
                plain = values.dequantize().to(getattr(torch, dtype))
                setattr(module, name, torch.nn.Parameter(plain, requires_grad=False))
