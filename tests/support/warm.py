"""Processes that start in milliseconds: forks of one that has imported what takes seconds.

Promises: such a process is one of its own, with the arguments, environment, folder, output files
and session it was asked for. There is none where its environment would have to be there when
libraries are imported, or where the system cannot do it.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, Protocol

from tests.support.repository import REPOSITORY
from tests.support.warmserver import MESSAGE_BYTES, PRELOADED, Request

READ_WHEN_USED = (
    *("AIRFLOW", "AWS_", "COLUMNS", "LINES", "OPD_", "PATH", "PWD", "PYTEST_"),
    *("SPT_", "VLLM_"),  # a start of vLLM in this process leaves them
)
"""Beginnings, after underscores, of variables that no library reads when it is imported."""

SET_BY_STAGES = ("DS_ACCELERATOR", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that stages set for themselves; those that ran in this process have left them here."""

SET_BY_LAUNCHERS = (
    *("GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "WORLD_SIZE"),
    *("PYTHONSAFEPATH", "TORCHELASTIC_", "TORCH_NCCL_"),
)
"""Beginnings of variables that the learner's processes are started with, read as they join."""

PYTHON = """#!/bin/sh
[ "$1 $2 $3" = "-P -m cli.main" ] || exit 2
shift 3
exec {opd} "$@"
"""

ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Keeps pyarrow from starting a thread when it is imported."""


class Process(Protocol):
    """What tests use of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process's number."""

    @property
    def returncode(self) -> int | None:
        """The exit status once it is known; negative for a signal."""

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the process has ended."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to a process that has not ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class WarmProcess:
    """A fork of the server."""

    def __init__(self, pid: int, args: Sequence[str], server: socket.socket) -> None:
        """Take the process's number, its arguments and the socket that will tell its end."""
        self.pid, self.args = pid, args
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the process has ended."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal to a process that has not ended; its number is kept until that is told."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            told = self._server.recv(MESSAGE_BYTES)
            assert told, f"the server of process {self.pid} is gone"
            self.returncode = int(told)
            self._server.close()  # now the process's number may be given to another
        return self.returncode


class WarmServer:
    """The client's side of the server."""

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        """Start the server, which imports modules while its client goes on."""
        self._socket, theirs = _pair()
        self._imported_with = _read_at_import(os.environ)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warmserver", str(theirs.fileno()), *modules],
                cwd=REPOSITORY,
                env=os.environ | ONE_THREAD,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def differs(self, env: Mapping[str, str]) -> set[str]:
        """Return the variables with which what was imported might be something else."""
        return {name for name, _ in _read_at_import(env).items() ^ self._imported_with.items()}

    def start(self, request: Request, stdout: IO[str], stderr: IO[str]) -> WarmProcess:
        """Start a process that prints to these files."""
        mine, theirs = _pair()
        with theirs:
            files = [stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(self._socket, [json.dumps(asdict(request)).encode()], files)
        pid = mine.recv(MESSAGE_BYTES)
        assert pid, f"no process was started: {self._said()}"
        return WarmProcess(int(pid), request.argv, mine)

    def close(self) -> None:
        """End the server, and with it what it started."""
        self._socket.shutdown(socket.SHUT_RDWR)  # forks of this process may hold it, too
        self._socket.close()
        self._process.wait()
        self._log.close()

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()


class WarmGate:
    """A socket by which other programs get warm processes: `python warmcall.py PATH …`.

    Attributes:
        opd: words that stand for the command `opd`.
        python: a program that stands for Python where that runs `opd` by its module.
    """

    def __init__(self) -> None:
        """Listen in a folder of its own, for a socket's path must be short."""
        warm_server()
        self._folder = tempfile.TemporaryDirectory(prefix="opd-")
        path, self.python = f"{self._folder.name}/gate", f"{self._folder.name}/python"
        self.opd = f"{sys.executable} -S {Path(__file__).with_name('warmcall.py')} {path}"
        Path(self.python).write_text(PYTHON.format(opd=self.opd))
        Path(self.python).chmod(0o700)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(path)
        self._socket.listen()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=_serve, args=(caller,), daemon=True).start()


def _serve(caller: socket.socket) -> None:
    """Start the process that a caller asks for, and tell how it ends; it ends with its caller."""
    with caller, suppress(BrokenPipeError):
        message, files, _, _ = socket.recv_fds(caller, MESSAGE_BYTES, 2)
        request = Request(**json.loads(message))
        with open(files[0], "w") as stdout, open(files[1], "w") as stderr:
            process: Process = start_warm(request, stdout, stderr) or subprocess.Popen(
                [sys.executable, "-m", "cli.main", *request.argv[1:]],
                cwd=request.cwd,
                env=request.env,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        ended = os.pidfd_open(process.pid)
        caller.send(str(process.pid).encode())
        select.select([caller.fileno(), ended], [], [])
        os.close(ended)
        if process.poll() is None:
            process.kill()
        caller.send(str(process.wait()).encode())


def start_warm(request: Request, stdout: IO[str], stderr: IO[str]) -> WarmProcess | None:
    """Return a warm process that was started with a request; nothing where none can do it.

    Args:
        request: what it is to do, in a session of its own.
        stdout: where it prints to.
        stderr: the same for errors.
    """
    if sys.platform != "linux" or warm_server().differs(request.env):
        return None
    return warm_server().start(request, stdout, stderr)


@cache
def warm_server() -> WarmServer:
    """Return the server of this process; it starts on first use."""
    server = WarmServer()
    atexit.register(server.close)
    return server


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that libraries may look at when they are imported."""
    return {
        name: value
        for name, value in env.items()
        if not name.lstrip("_").startswith(READ_WHEN_USED + SET_BY_STAGES + SET_BY_LAUNCHERS)
    }


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
