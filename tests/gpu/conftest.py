"""Tests on a GPU: they need torch, transformers, deepspeed, pyarrow and the core, nothing else.

Without a GPU all of them are skipped, and say so. `make test-gpu` runs them without the fixtures of
the other tests, whose servers a GPU machine need not have.
"""

import pytest
import torch

from tests.support.golden import Models


@pytest.fixture(scope="session", autouse=True)  # before what takes minutes is made for a test
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch sees none on this machine")


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a maker of models, each made once."""
    return Models(tmp_path_factory.mktemp)
