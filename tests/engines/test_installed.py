"""Versions of what is installed."""

from importlib import metadata

import pytest

from pipeline.engines.installed import engine_version
from schemas.errors import ConfigError


def test_without_vllm_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ConfigError, match=r"opd\[vllm\]"):
        engine_version("vllm")
