"""Engine processes whose owner is gone: found by name, and ended by the kernel."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.engines import processes
from pipeline.engines.processes import OWNER, Offspring, find_orphans

IDLE = "import time; time.sleep(60)"
STARTS_A_CHILD = """
import os, subprocess, sys, time
from pipeline.engines.processes import owner_mark
follow = "from pipeline.engines.processes import end_engine_with_parent as end; end();"
code = follow + "print('up', flush=True); import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **owner_mark()},
                         stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_is_an_orphan_once_its_owner_is_gone() -> None:
    owner = subprocess.Popen([sys.executable, "-c", IDLE])
    started = psutil.Process(owner.pid).create_time()
    marked = {**os.environ, OWNER: f"{owner.pid}:{started:.2f}"}
    child = subprocess.Popen([sys.executable, "-c", IDLE], env=marked)
    try:
        for _ in range(100):  # a new process has its parent's environment for a moment
            if OWNER in psutil.Process(child.pid).environ():
                break
            time.sleep(0.05)
        assert child.pid not in [orphan.pid for orphan in find_orphans()]
        owner.kill()
        owner.wait()
        found = {orphan.pid: orphan for orphan in find_orphans()}
        assert found[child.pid].owner == owner.pid and "sleep" in found[child.pid].command
    finally:
        for process in (owner, child):
            process.kill()
            process.wait()
    assert child.pid not in [orphan.pid for orphan in find_orphans()]


def test_an_engines_process_ends_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_CHILD], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert not psutil.wait_procs([child], timeout=120)[1]


def sleep_beside_a_child() -> None:
    subprocess.Popen([sys.executable, "-c", IDLE])
    time.sleep(60)


def test_a_process_that_does_not_end_is_killed_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.2)
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    offspring = Offspring()
    child = spawn.Process(target=sleep_beside_a_child, daemon=True)
    child.start()
    process = psutil.Process(child.pid)
    while not process.children():
        time.sleep(0.05)
    (grandchild,) = process.children()
    offspring.note()
    offspring.await_end()
    assert child.exitcode == -signal.SIGKILL and not running(grandchild)
    assert other.is_alive(), "it was there before"
    other.kill()
    other.join()


def running(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
