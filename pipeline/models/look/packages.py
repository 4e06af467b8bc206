"""Which packages transformers needs for a model, beside those that opd comes with. Pure.

Nothing is imported: metadata of installed packages say what is there.
"""

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from pipeline.models.look.settings import quantization_of
from schemas.foreign import shown

QUANTIZED = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitnet": (),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("eetq",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "fouroversix": ("fouroversix",),
    "fp8": (),
    "fp_quant": ("fp_quant",),
    "gemma": (),
    "gguf": (),
    "gptq": ("optimum", "gptqmodel"),
    "higgs": ("flute-kernel",),
    "hqq": ("hqq",),
    "metal": (),
    "mxfp4": (),
    "mxfp8": (),
    "nvfp4": (),
    "quanto": ("optimum-quanto",),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "spqr": ("spqr_quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""Methods of quantisation → packages with which transformers reads them."""

ATTENTION = {
    "flash_attention_2": ("flash-attn",),
    "flash_attention_3": ("flash-attn-3",),
}
"""Implementations of attention → packages."""


def package_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what transformers would lack to load a model with these settings."""
    quantized = quantization_of(settings)
    method = str(quantized.get("quant_method")) if quantized else ""
    if quantized and method not in QUANTIZED:
        yield (
            f"quantization_config.quant_method is {shown(method)}, which transformers does not "
            "know and would load without its scales: set the stage's engine to one that knows it, "
            "such as 'vllm', or give the model that was not quantised"
        )
    for package in _lacking(QUANTIZED.get(method, ())):
        yield (
            f"quantization_config.quant_method is {shown(method)}, which transformers reads with "
            f"{package}, and that is not installed: pip install {package}, set the stage's engine "
            "to 'vllm', or give the model that was not quantised"
        )
    for name in ("attn_implementation", "_attn_implementation"):
        wanted = settings.get(name)
        for package in _lacking(ATTENTION.get(wanted, ()) if isinstance(wanted, str) else ()):
            yield (
                f"{name} is {shown(wanted)}, which needs {package}, and that is not installed: "
                f"remove {name} from the file, or pip install {package}"
            )


def _lacking(packages: tuple[str, ...]) -> Iterator[str]:
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package
