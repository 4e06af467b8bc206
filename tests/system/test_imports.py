"""Imports point down, and each contract of pyproject.toml is kept."""

import subprocess
import sys
from pathlib import Path

from tests.support.repository import REPOSITORY


def test_the_import_contracts_are_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
