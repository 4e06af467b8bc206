"""What people asked for by name is there whole, or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.disk.appearing import appearing
from pipeline.store.disk.scratch import PREFIX, sweep
from schemas.errors import ConfigError, StorageError

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.store.disk.appearing import appearing
with appearing(Path(sys.argv[1]), folder=True) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_nothing_under_the_name_and_what_it_leaves_is_cleared_away(
    tmp_path: Path,
) -> None:
    target = tmp_path / "deep" / "outcome"
    done = subprocess.run([sys.executable, "-c", KILLED, target], timeout=60)
    assert done.returncode == -9 and not target.exists()
    (left,) = target.parent.iterdir()
    assert left.name.startswith(PREFIX)
    assert sweep(target.parent) == [left]


@pytest.mark.parametrize("folder", [True, False])
def test_a_name_that_is_taken_meanwhile_is_refused(folder: bool, tmp_path: Path) -> None:
    target = tmp_path / "outcome"
    with (
        pytest.raises(ConfigError, match="created in the meantime"),
        appearing(target, folder=folder) as place,
    ):
        ((place / "x") if folder else place).write_text("ours")
        target.mkdir()
        (target / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["outcome"]
    assert [path.name for path in target.iterdir()] == ["theirs"]


def test_a_name_below_a_file_or_of_a_dead_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    for name in ("file/outcome", "file", "link", "round/x", "x" * 300):
        with pytest.raises(ConfigError), appearing(tmp_path / name, folder=True):
            pass


def test_a_full_disk_names_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=str(tmp_path)),
        appearing(tmp_path / "x", folder=False),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
