"""Temporary folders: empty, gone afterwards, swept after a kill, and honest about a full disk."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.store.disk.scratch import disk_fault, scratch, sweep
from schemas.errors import DataError, StorageError
from tests.support.repository import REPOSITORY

HOLD = """
import sys, time
from pipeline.store.disk.scratch import scratch
with scratch("held") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_empty_and_gone_afterwards() -> None:
    with scratch("test") as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").write_text("x")
    assert not folder.exists()


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_is_not(
    own_tmpdir: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(own_tmpdir), "PYTHONPATH": str(REPOSITORY)},
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    assert sweep(own_tmpdir) == []
    assert (folder / "file").exists()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert sweep(own_tmpdir) == [folder]
    assert not folder.exists()


def test_folders_of_others_and_links_are_left_alone(own_tmpdir: Path) -> None:
    (own_tmpdir / "mine").mkdir()
    (own_tmpdir / "opd.link").symlink_to(own_tmpdir / "mine")
    (own_tmpdir / "opd-old-abc").mkdir()
    assert sweep(own_tmpdir) == []
    assert {path.name for path in own_tmpdir.iterdir()} == {"mine", "opd.link", "opd-old-abc"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_named_whichever_library_met_it(error: Exception) -> None:
    with pytest.raises(StorageError, match="TMPDIR"), scratch("test"):
        raise error


def test_a_full_disk_behind_another_exception_is_seen() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise ValueError("could not write") from error
    except ValueError as error:
        assert disk_fault(error) == "the disk quota is used up"


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(DataError, match="as it is"), scratch("test"):
        raise DataError("as it is")
    with pytest.raises(ValueError, match="a bug"), scratch("test"):
        raise ValueError("a bug")
    assert disk_fault(ValueError("a bug")) is None


def test_a_tmpdir_that_cannot_be_written_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, own_tmpdir: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(own_tmpdir / "missing"))
    with pytest.raises(StorageError, match="TMPDIR"), scratch("test"):
        pass
