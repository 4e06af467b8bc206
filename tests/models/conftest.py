"""Models on disk that tests share."""

import shutil
from pathlib import Path

import pytest

from tests.support import tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("models") / "whole", layers=1)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of a whole model."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))
