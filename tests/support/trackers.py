"""The environment of trackers' libraries: commands in it, and its readers of what was sent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY
from tests.support.runs import Outcome
from tests.support.trackertold import parts

Told = list[tuple[str, int, float]]
"""Figures: name, number of the step or round, and value."""

PYTHON = REPOSITORY / ".venv-trackers" / "bin" / "python"


def tracker_python() -> Path:
    """Return the Python that has the libraries; skip where there is none."""
    if not PYTHON.exists():
        pytest.skip("there are no trackers in .venv-trackers: make .venv-trackers/.trackers")
    return PYTHON


def in_environment(*arguments: str | Path) -> Outcome:
    """Run a command of opd in that environment, offline."""
    command = [str(tracker_python()), "-P", "-m", "cli.main", *map(str, arguments)]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


def variables() -> dict[str, str]:
    """Return the environment of such a command."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline"}


def told_and_killed(kind: str, folder: Path, *moments: str) -> None:
    """Have a tracker told of made-up parts, by processes that are killed at moments and a last."""
    program = REPOSITORY / "tests" / "support" / "trackertold.py"
    command = [str(tracker_python()), str(program), kind, str(folder), *moments]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def synced(folder: Path, server: str, key: str) -> str:
    """Have `wandb sync` send all runs of a folder to a server; return what it prints."""
    runs = sorted(map(str, folder.glob("offline-run-*")))
    command = [str(tracker_python()), "-m", "wandb", "sync", *runs]
    env = {**variables(), "WANDB_BASE_URL": server, "WANDB_API_KEY": key, "HOME": str(folder)}
    del env["WANDB_MODE"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


def read_back(kind: str, *arguments: str | Path) -> Any:
    """Return what a library's own reader finds."""
    program = REPOSITORY / "tests" / "support" / "trackerreaders.py"
    command = [str(tracker_python()), str(program), kind, *map(str, arguments)]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=300)
    print(done.stderr, file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def all_points() -> Told:
    """Return the figures of the made-up parts."""
    points = [one for part in parts() for one in part.points]
    return sorted((name, one.number, value) for one in points for name, value in one.named.items())


def points_of(scalars: dict[str, list[Any]]) -> Told:
    """Return figures as a reader found them."""
    return sorted((name, at, value) for name, found in scalars.items() for at, value in found)
