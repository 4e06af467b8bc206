"""Standard streams that nobody reads, and a working folder that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY
from tests.support.tiny import write_run


def test_a_reader_that_has_seen_enough_ends_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    status = f"{sys.executable} -m cli.main status -c {config}"
    command = f"{status} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("to", "code"), [("/dev/full", 6), ("&-", 0)])
def test_what_cannot_be_printed_is_told_if_it_should_have_been(
    to: str, code: int, tmp_path: Path
) -> None:
    config = write_run(tmp_path)
    command = f"{sys.executable} -m cli.main status -c {config} >{to}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, timeout=50
    )
    assert done.returncode == code, done.stderr
    assert ("the disk is full" in done.stderr) == (code == 6)
    assert "Traceback" not in done.stderr


def test_a_working_folder_that_was_deleted_is_told(tmp_path: Path) -> None:
    place, config = tmp_path / "place", write_run(tmp_path)
    place.mkdir()
    command = f"rmdir {place}; {sys.executable} -m cli.main status -c {config}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("opd: the working folder cannot be used")
