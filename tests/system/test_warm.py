"""Warm processes are what ordinary ones are, and end with what started them."""

import os
import signal
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest

from tests.support.children import describe_process, sleep_long
from tests.support.repository import REPOSITORY
from tests.support.runs import finish, start, start_function
from tests.support.warm import WarmProcess, warm_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are all ordinary here")

CLIENT = """
import os, sys, tempfile
from tests.support.repository import REPOSITORY
from tests.support.warm import WarmServer
from tests.support.warmserver import Request

request = Request("time:sleep", [300], ["sleep"], str(REPOSITORY), dict(os.environ))
server = WarmServer(modules=())  # it ends when nothing holds it any more
with tempfile.TemporaryFile("w+") as file:
    print(server.start(request, file, file).pid, flush=True)
    sys.stdin.read()
"""


def described(*, warm: bool) -> dict[str, Any]:
    """Return what a process finds about itself, without what is its own."""
    process = start_function(describe_process, "one", warm=warm)
    assert isinstance(process, WarmProcess) is warm
    outcome = finish(process)
    assert outcome.code == 3, outcome.stderr
    assert outcome.stderr == "said to stderr\n"
    found = outcome.result
    assert found.pop("session") == found.pop("group") == found.pop("pid") == process.pid
    return found


def test_a_warm_process_is_what_an_ordinary_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "for the child")
    warm, again, cold = described(warm=True), described(warm=True), described(warm=False)
    numbers = [found.pop("random") for found in (warm, again, cold)]
    assert all(len(set(drawn)) == 3 for drawn in zip(*numbers, strict=True))
    threads = [found.pop("threads") for found in (warm, again, cold)]
    assert threads[:2] == [1, 1]  # pyarrow may have started one in the ordinary process
    assert warm == again == cold
    assert warm["environment"]["AWS_ACCESS_KEY_ID"] == "for the child"


def test_the_end_of_a_warm_process_is_told_as_that_of_any_other() -> None:
    process = start_function(sleep_long)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == process.poll() == process.returncode == -signal.SIGKILL
    process.kill()  # it has ended: nobody else is killed
    assert finish(start("config", "validate", "-c", "nowhere")).code == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HOME", "ANYTHING"])
def test_another_environment_at_import_takes_an_ordinary_process(name: str) -> None:
    assert not warm_server().differs(os.environ)
    assert warm_server().differs({**os.environ, name: "7"}) == {name}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_and_processes_end_with_their_client(number: signal.Signals) -> None:
    command = [sys.executable, "-c", CLIENT]
    client = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=REPOSITORY)
    assert client.stdout is not None
    started = psutil.Process(int(client.stdout.readline()))
    servers = psutil.Process(client.pid).children()
    assert started.ppid() in {server.pid for server in servers}
    client.send_signal(number)
    client.wait()
    assert not psutil.wait_procs([started, *servers], timeout=120)[1]


@pytest.mark.parametrize("as_python", [False, True])
@pytest.mark.parametrize("added", [{}, {"HF_HOME": "elsewhere"}])
def test_a_command_through_the_gate_prints_and_ends_as_opd_does(
    as_python: bool, added: dict[str, str], warm_opd: str, warm_python: str
) -> None:
    words = [warm_python, "-P", "-m", "cli.main"] if as_python else warm_opd.split()
    command = [*words, "status", "-c", "nowhere.toml", "--json"]
    env = {**os.environ, **added}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr and '"exit_code": 2' in done.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_command_through_the_gate_takes_signals(
    number: signal.Signals, code: int, warm_opd: str
) -> None:
    before = set(psutil.Process().children(recursive=True))
    with socket.create_server(("127.0.0.1", 0)) as server:  # a store that never answers
        server.settimeout(60)
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {**os.environ, "AWS_ENDPOINT_URL": place, "AWS_ACCESS_KEY_ID": "a"}
        env["AWS_SECRET_ACCESS_KEY"] = "b"
        command = [*warm_opd.split(), "config", "validate", "-c", "s3://bucket/run.toml"]
        caller = subprocess.Popen(command, env=env)
        with server.accept()[0]:
            begun = set(psutil.Process().children(recursive=True)) - before
            assert len(begun) == 2
            caller.send_signal(number)
            assert caller.wait(timeout=60) == code
            assert not psutil.wait_procs(begun, timeout=120)[1]
