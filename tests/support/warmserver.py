"""The server of warm processes (`python -m tests.support.warmserver FD MODULE…`).

Promises: it has one thread and no sockets but its client's; a fork leaves the server's loop and
ends as any program does, but for the interpreter's last clean-up; when the client is gone, the
server ends what it forked, and itself.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

PRELOADED = (
    "deepspeed",
    "pipeline.stages.evaluate",
    "pipeline.engines.hf.engine",
    "pipeline.stages.rollout",
    "pipeline.stages.rounds",
    "pipeline.stages.score",
    "pipeline.stages.train",
    "s3fs",
    "torch.distributed.launcher.api",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
)
"""Modules that stages of tiny runs import."""

MESSAGE_BYTES = 1 << 17


@dataclass(frozen=True)
class Request:
    """A function to call in a process of its own, and what that process begins with."""

    function: str
    """Such as `cli.main:main`."""
    arguments: Sequence[Any]
    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]


@dataclass
class Fork:
    """A process that was forked, until the client knows how it ended."""

    pid: int
    ended: int
    """Readable once the process has ended."""
    client: socket.socket
    """Takes the exit status; its other end is closed when the status has been read."""
    told: bool = False

    def fileno(self) -> int:
        """Return what to wait for next."""
        return self.client.fileno() if self.told else self.ended

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.ended)
        self.client.close()


def main(given: str, *modules: str) -> None:
    """Serve the socket of this number; or do what is requested in this process."""
    if not given.isdecimal():
        run(Request(**json.loads(given)))
        return
    preload(modules)
    forked = serve(socket.socket(fileno=int(given)))
    if forked is not None:
        try:
            run(forked)
        except SystemExit as end:
            leave(int(end.code or 0))


def preload(modules: Sequence[str]) -> None:
    """Import modules, and libraries as a stage does."""
    if modules:
        from pipeline.models.border import settle_libraries

        settle_libraries()
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # nor do the forks look through it again and again
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"


def serve(client: socket.socket) -> Request | None:
    """Fork for each request; return it in the fork, and nothing in the server at its end."""
    forks: list[Fork] = []
    while True:
        waiting: list[int | Fork] = [client.fileno(), *forks]
        ready, _, _ = select.select(waiting, [], [])
        forks = [fork for fork in forks if fork not in ready or look_after(fork)]
        if client.fileno() not in ready:
            continue
        message, files, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
        if not message:
            end_all(forks)
            return None
        pid = os.fork()
        if pid == 0:
            client.close()
            for fork in forks:
                fork.close()
            return become(Request(**json.loads(message)), files)
        for file in files[:2]:
            os.close(file)
        forks.append(Fork(pid, os.pidfd_open(pid), socket.socket(fileno=files[2])))


def look_after(fork: Fork) -> bool:
    """Tell how a process ended and return True; once that is known, let go of its number."""
    if fork.told:
        os.waitpid(fork.pid, 0)
        fork.close()
        return False
    found = os.waitid(os.P_PID, fork.pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    with suppress(BrokenPipeError, ConnectionResetError):  # nobody wants to know
        fork.client.send(str(status).encode())
    fork.told = True
    return True


def end_all(forks: Sequence[Fork]) -> None:
    """Kill the processes that are left, and what they started in their groups."""
    for fork in forks:
        with suppress(ProcessLookupError):
            os.killpg(fork.pid, signal.SIGKILL)


def become(request: Request, files: Sequence[int]) -> Request:
    """Make this fork the process that was requested, and tell its client."""
    os.setsid()
    for target, file in zip((1, 2), files, strict=False):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    _reseed()
    with socket.socket(fileno=files[2]) as client:
        client.send(str(os.getpid()).encode())
    return request


def run(request: Request) -> None:
    """Call the function and exit with what it returns."""
    sys.argv = list(request.argv)
    module, _, name = request.function.partition(":")
    sys.exit(getattr(importlib.import_module(module), name)(*request.arguments))


def leave(code: int) -> NoReturn:
    """Exit at once: the interpreter would take apart all that was imported for half a second.

    Before that, it waits for threads, as it would by itself.
    """
    threading._shutdown()  # type: ignore[attr-defined] # typeshed does not list it
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _reseed() -> None:
    """Give global generators seeds of their own; the standard library's has one after a fork."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


if __name__ == "__main__":
    main(*sys.argv[1:])
