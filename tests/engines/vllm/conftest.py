"""What all tests of the vLLM engine need: vLLM itself, and models that it can run."""

from collections.abc import Callable

import pytest

from pipeline.engines.opening import require_engine
from schemas.errors import ConfigError
from tests.support.golden import Models, Tiny


@pytest.fixture(scope="module", autouse=True)
def vllm(request: pytest.FixtureRequest) -> None:
    """Let vLLM start, or skip where it is not installed."""
    try:
        require_engine("vllm")
    except ConfigError:
        pytest.skip("vLLM is not installed")
    request.getfixturevalue("beside_flask")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """Return a maker of models that vLLM can run."""
    return Models(tmp_path_factory.mktemp)
