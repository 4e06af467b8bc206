"""Opening of an engine by its section of the configuration."""

from collections.abc import Callable
from typing import Any

from pipeline.engines.engine import Engine
from pipeline.engines.installed import engine_version, require_engine
from pipeline.models.source import ModelSource, load_settings
from schemas.config.engines import EngineSection


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
        from pipeline.engines.server.check import served_version

        return served_version(section.server, needed_tokens)
    return engine_version(section.engine)


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
        from pipeline.engines.server.engine import ServerEngine

        if max_tokens is None:
            max_tokens = int(load_settings(source).max_position_embeddings) - 1
        return ServerEngine(source, max_tokens=max_tokens, **given)
    if section.engine == "vllm":
        from pipeline.engines.vllm.engine import VllmEngine

        return VllmEngine(source, max_tokens=max_tokens, **given)
    from pipeline.engines.hf.engine import HfEngine

    return HfEngine(source, dtype=dtype, settings=section)
