"""Runs and exports that tests of checkpoints share."""

import json
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from tests.support import tiny
from tests.support.checkpoints import exported


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, config_path: Path, tmp_path: Path) -> Run:
    """Return a run with a fresh store of each kind in turn."""
    memory = f"memory://{abs(hash(request.node.nodeid))}"
    root = memory if request.param == "memory" else str(tmp_path / "store")
    return open_run(load_config(config_path, [f"run.root={json.dumps(root)}"]))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export; tests only read it."""
    return exported(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of other weights; tests only read it."""
    return exported(tmp_path_factory.mktemp("second"), seed=1)
