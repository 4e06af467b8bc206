"""The command line starts without loading an accelerator library."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

HEAVY = {"torch", "transformers", "vllm", "deepspeed", "peft", "accelerate", "vl_convert"}
CACHE_TOOLS = (
    "pipeline.upkeep.verify, pipeline.upkeep.stats, pipeline.upkeep.export, pipeline.upkeep.garbage"
)
LIST_MODULES = "; import json, sys; print(json.dumps(sorted(sys.modules)))"


@pytest.mark.parametrize(
    "statement",
    [
        *("import cli.commands", "import pipeline.store.storage", f"import {CACHE_TOOLS}"),
        "import pipeline.stages.score, pipeline.stages.train",  # a finished round is told at once
    ],
)
def test_an_import_loads_no_accelerator_library(statement: str) -> None:
    command = [sys.executable, "-c", statement + LIST_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert HEAVY.intersection(json.loads(done.stdout)) == set()


def test_the_command_line_needs_only_the_core_requirements() -> None:
    command = [sys.executable, "-c", "import cli.commands" + LIST_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    owners = metadata.packages_distributions()
    tops = {name.split(".")[0] for name in json.loads(done.stdout)}
    needed = {owner for top in tops for owner in owners.get(top, [])} - {"opd"}
    lines = (REPOSITORY / "requirements" / "core.txt").read_text().splitlines()
    core = {line.split("==")[0] for line in lines}
    assert "typer" in needed
    optional = {"cloudpickle"}  # pyarrow takes it where it is installed, here for vLLM
    assert needed - core - optional == set()


def test_help_loads_no_accelerator_library() -> None:
    opd = Path(sys.executable).parent / "opd"
    command = [sys.executable, "-X", "importtime", str(opd), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert HEAVY & loaded == set()
    assert "rollout" in done.stdout


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import pipeline as opd, cli", HEAVY | {"polars", "pyarrow", "pydantic", "fsspec"}),
        ("import pipeline as opd; opd.open; opd.OpdError", HEAVY),
        ("import pipeline.api.frames", HEAVY),
    ],
)
def test_the_python_api_loads_what_a_name_needs_and_not_before(
    statement: str, heavy: set[str]
) -> None:
    command = [sys.executable, "-c", statement + LIST_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert heavy.intersection(json.loads(done.stdout)) == set()
