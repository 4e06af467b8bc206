"""A server of our own: its start, its end and its death, with a stand-in for vLLM."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.server import process
from pipeline.engines.server.engine import ServerEngine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.scores.scores import Scores
from schemas.config.engines import EngineSection, ServerSection, VllmSection
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal
from tests.support.fakeserver import FakeVllm
from tests.support.golden import V, rows
from tests.support.repository import REPOSITORY
from tests.support.servergolden import assert_scores, expected_scores, open_server, scored


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> EngineSection:
    """Return a section whose engine starts the stand-in where it would start vLLM."""
    monkeypatch.setattr(process, "MODULE", "tests.support.fakeserver")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    server = ServerSection(retry_s=5.0, timeout_s=5.0)
    return EngineSection(engine="server", batch_tokens=256, server=server)


def group(pid: int) -> list[str]:
    """Return the processes of a group that are not over."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in found.stdout.splitlines()]
    return [state for number, state in pairs if int(number) == pid and state[0] != "Z"]


def wait_until_gone(pid: int) -> None:
    for _ in range(1200):
        if not group(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"group {pid} still has processes")


def pid_of(engine: ServerEngine) -> int:
    assert engine._running.process is not None
    return engine._running.process.pid


def test_a_server_of_our_own_ends_with_all_that_it_started(
    source: ModelSource, own: EngineSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "TEACHER_KEY", "VLLM_API_KEY", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "of ours")
    engine = open_server(source, own)
    try:
        passed = psutil.Process(pid_of(engine)).environ()
        assert [name for name, text in passed.items() if text == "of ours"] == [
            "VLLM_LOGGING_LEVEL"
        ]
        assert len(group(pid_of(engine))) == 2
        assert scored(engine).token_rank.min() >= 1
        pid = pid_of(engine)
    finally:
        engine.close()
    assert group(pid) == []


def test_a_server_of_our_own_that_is_killed_is_started_again_and_the_work_done_once_more(
    source: ModelSource, own: EngineSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE_SLOW", "600")
    notes: list[str] = []
    (prompts, responses), calls = rows(30), []

    def work(engine: Any) -> Scores:
        calls.append(pid_of(engine))
        if len(calls) == 1:
            monkeypatch.delenv("VLLM_FAKE_SLOW")  # the next one answers
            threading.Timer(0.2, os.killpg, (calls[0], signal.SIGKILL)).start()
        found: Scores = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
        return found

    with LazyEngine(lambda: open_server(source, own), notes.append) as engine:
        found = engine.call(work)
    assert len(set(calls)) == 2 and "ended on its own" in notes[0]
    reference = FakeVllm(V)
    assert_scores(found, expected_scores(reference, prompts, responses, k=4))
    reference.close()
    for pid in calls:
        wait_until_gone(pid)


def test_a_server_of_our_own_is_held_against_transformers_and_ended_where_it_is_not(
    source: ModelSource, own: EngineSection
) -> None:
    before = set(psutil.Process().children())
    start = Start(source, own, dtype="float32", use="score", max_tokens=60)
    with pytest.raises(ConfigError, match="'server' cannot be used .* float32 forward"):
        open_engine(start, print)  # the stand-in's numbers are of no model
    assert not {p for p in psutil.Process().children() if p.is_running()} - before


def test_a_server_that_cannot_start_is_told_with_its_last_words(
    source: ModelSource, own: EngineSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FAKE_FAILS", "no such attention")
    with pytest.raises(ConfigError, match="(?s)no such attention.*set the stage's engine to 'hf'"):
        open_server(source, own)
    monkeypatch.setenv("VLLM_FAKE_FAILS", "CUDA out of memory")
    with pytest.raises(CapacityError, match="CUDA out of memory"):
        open_server(source, own)


def test_a_server_that_does_not_start_again_is_told_with_its_last_words(
    source: ModelSource, own: EngineSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(engine: Any) -> None:
        monkeypatch.setenv("VLLM_FAKE_FAILS", "no such attention")
        raise CapacityError("memory ran out")

    with (
        pytest.raises(ConfigError, match="no such attention"),
        LazyEngine(lambda: open_server(source, own), print) as engine,
    ):
        engine.call(work)


OWNER = """
import sys, time
from pipeline.engines.server import process
process.MODULE = "tests.support.fakeserver"
given = {"model": sys.argv[1], "max_model_len": 61}
print(process.ServerProcess(given, print).pid, flush=True)
time.sleep(600)
"""


def test_a_server_of_our_own_does_not_outlive_a_process_that_is_killed(source: ModelSource) -> None:
    command = [sys.executable, "-c", OWNER, source.location]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert group(pid)
        owner.kill()
    for _ in range(1200):
        if len(group(pid)) <= 1:  # the stand-in's own child is not its business
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the server outlived its owner")
    os.killpg(pid, signal.SIGKILL)


def test_settings_become_vllms_command_line() -> None:
    given = {
        "max_model_len": 9,
        "enforce_eager": True,
        "revision": None,
        "a_b": False,
        "c": ["d", "e"],
    }
    expected = ["--max-model-len", "9", "--enforce-eager", "--no-a-b", "--c", "d", "e"]
    assert process.flags(given) == expected
    assert VllmSection().data_parallel_size == 1
