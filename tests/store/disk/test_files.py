"""Files that appear whole or not at all, also when the writer is killed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store.disk import files
from pipeline.store.storage import Storage
from tests.support.repository import REPOSITORY

KILLED_WRITER = """
import os, sys, time
from pathlib import Path
from pipeline.store.disk import files
step, verb, path = sys.argv[1:]
def hang(*args):
    print("there", flush=True)
    time.sleep(60)
setattr(os, step, hang)
getattr(files, verb)(Path(path), b"new" * 100_000)
"""


def test_create_makes_a_whole_file_and_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.create(path, b"data")
    assert path.read_bytes() == b"data"
    assert os.listdir(path.parent) == ["file"]


def test_create_refuses_an_existing_file_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.create(path, b"first")
    with pytest.raises(FileExistsError):
        files.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_replace_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"first")
    files.replace(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_create_has_one_winner_in_many_races(tmp_path: Path) -> None:
    for race in range(20):
        path, barrier = tmp_path / f"race{race}", threading.Barrier(8)

        def attempt(number: int, path: Path = path, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                files.create(path, bytes([number]) * 1000)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(attempt, range(8)))
        assert won.count(True) == 1
        assert path.read_bytes() == bytes([won.index(True)]) * 1000


def test_a_reader_never_sees_a_torn_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "file", threading.Event()
    whole = [bytes([number]) * 100_000 for number in range(2)]
    files.replace(path, whole[0])

    def write() -> None:
        for number in range(60):
            files.replace(path, whole[number % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        assert path.read_bytes() in whole
    writer.join()


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_create_killed_in_the_middle_leaves_nothing_visible(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file"
    kill_during(step, "create", path)
    assert not path.exists()
    assert all(name.startswith(".tmp-") for name in os.listdir(tmp_path))
    files.create(path, b"afterwards")
    assert path.read_bytes() == b"afterwards"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_replace_killed_in_the_middle_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file"
    files.create(path, b"old")
    kill_during(step, "replace", path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failed_create_leaves_nothing(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        files.create(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def kill_during(step: str, verb: str, path: Path) -> None:
    """Kill a child that writes a file when it comes to a system call."""
    command = [sys.executable, "-c", KILLED_WRITER, step, verb, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_files_and_folders_get_the_permissions_that_the_umask_leaves(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    before = os.umask(umask)
    try:
        files.create(tmp_path / "a" / "created", b"data")
        files.replace(tmp_path / "a" / "replaced", b"data")
        files.copy_in(tmp_path / "a" / "copied", source)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == folder
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {file}


def test_a_dead_unfinished_file_goes_when_its_folder_is_listed_and_written_to(
    tmp_path: Path,
) -> None:
    storage, dead = Storage(str(tmp_path)), tmp_path / "x/.tmp-dead"
    dead.parent.mkdir()
    dead.write_bytes(b"half")
    assert storage.names("x") == set()
    assert dead.exists()
    alive = dead.with_name(".tmp-alive")
    alive.write_bytes(b"half")
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as whoever writes it does
        storage.names("x")
        storage.put("x/whole", b"")
        assert alive.exists() and not dead.exists()
        assert not files.remove_dead(alive)
    assert files.remove_dead(alive) and not alive.exists()
