"""What a DAG run may ask for: which configurations, and which of their keys it may replace.

Whoever may trigger a DAG is not whoever may run code on the workers: a configuration names models,
files, servers and graders. So both are lists of the settings. Standard library only.
"""

from collections.abc import Mapping
from typing import Any

from opd_settings import Settings

WHERE = "the settings of the DAGs, the file that OPD_AIRFLOW_SETTINGS names"


def refusal(params: Mapping[str, Any], settings: Settings) -> str | None:
    """Return why the Params of a DAG run are refused, or None where they are allowed."""
    config = params.get("config")
    if not (isinstance(config, str) and _is_listed(config, settings)):
        known = ", ".join(_configs(settings)) or "none"
        return (
            f"Param config = {config!r} is no configuration that a DAG run may name; allowed: "
            f"{known}. Add it, or its folder with / at the end, to `configs` in {WHERE}"
        )
    for item in params.get("overrides") or ():
        key = str(item).partition("=")[0].strip()
        if not any(_covers(allowed, key) for allowed in settings.overrides):
            return (
                f"Param overrides: {key!r} is no key that a DAG run may replace; allowed: "
                f"{', '.join(settings.overrides) or 'none'}. Write it into the configuration, or "
                f"add it to `overrides` in {WHERE}"
            )
    return None


def _configs(settings: Settings) -> tuple[str, ...]:
    return (*((settings.config,) if settings.config else ()), *settings.configs)


def _is_listed(config: str, settings: Settings) -> bool:
    """Return whether a configuration is in the list, or in a folder of it."""
    listed = _configs(settings)
    if config in listed:
        return True
    parts = config.split("/")
    if not config.isprintable() or {".", ".."} & set(parts) or "" in parts[3:]:
        return False
    return any(folder.endswith("/") and config.startswith(folder) for folder in listed)


def _covers(allowed: str, key: str) -> bool:
    """Return whether an entry of the list allows a key: itself, or all below `section.*`."""
    return key == allowed or (allowed.endswith(".*") and key.startswith(allowed[:-1]))
