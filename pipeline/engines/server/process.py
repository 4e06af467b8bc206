"""A vLLM server that opd starts on this machine: its start, its log and its end.

Promises: it listens on the loopback address with a key of its own, has a process group of its own,
and ends with this process, whichever way that ends. The log is shown where the server fails.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pipeline.engines.environment import MODELS, passed_on
from pipeline.engines.processes import SAFE_PATH, end_with_parent
from pipeline.engines.vllm.refusals import ADVICE
from pipeline.store import interrupts
from schemas.errors import CapacityError, ConfigError
from schemas.foreign import excerpt

MODULE = "vllm.entrypoints.openai.api_server"

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
"""What vLLM is told unless the user said otherwise."""

START_S = 3600.0
"""Seconds after which a server that is not ready is given up."""

NOTE_S, POLL_S = 30.0, 0.2

GRACE_S = 20.0
"""Seconds that a server may take to end before it is killed."""

ERROR_LINES, TAIL_LINES, TAIL_BYTES = 5, 15, 1 << 17


class ServerProcess:
    """A running server."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        note: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it and wait until it is ready.

        Args:
            arguments: vLLM's settings by their Python names.
            note: told of a start that takes long.
            environment: what vLLM is told unless the user said otherwise.

        Raises:
            CapacityError: the model does not fit.
            ConfigError: vLLM cannot run the model.
        """
        port = _free_port()
        self.url, self.key = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        command = [sys.executable, "-P", "-m", MODULE, "--host", "127.0.0.1", "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, *flags(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={
                **ENVIRONMENT,
                **(environment or {}),
                **passed_on(MODELS),
                **SAFE_PATH,
                "VLLM_API_KEY": self.key,
            },
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
        try:
            self._wait(note)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Return the process's number, which is that of its group too."""
        return self._process.pid

    def check_alive(self) -> None:
        """Make sure that the process is there.

        Raises:
            CapacityError: it ended.
        """
        if self._process.poll() is not None:
            raise CapacityError(
                f"the vLLM server that opd started ended on its own, with exit status "
                f"{self._process.returncode}; memory is the usual cause. Its last words:\n"
                f"{self._tail()}"
            )

    def close(self) -> None:
        """End the server and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _wait(self, note: Callable[[str], None]) -> None:
        begin = told = time.monotonic()
        while not _is_healthy(self.url):
            now = time.monotonic()
            if self._process.poll() is not None:
                raise _start_error(self._tail())
            if now - begin > START_S:
                raise ConfigError(
                    f"the vLLM server is not ready after {START_S:.0f} s. Its last words:\n"
                    f"{self._tail()}"
                )
            if now - told > NOTE_S:
                told = now
                note(f"the vLLM server has been starting for {now - begin:.0f} s")
            interrupts.beat()
            time.sleep(POLL_S)

    def _tail(self) -> str:
        """Return the first errors at the end of the log, and its last lines."""
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        lines = data.decode(errors="replace").splitlines()
        errors = [line for line in lines[:-TAIL_LINES] if "Error: " in line][:ERROR_LINES]
        return "\n".join(excerpt(line) for line in [*errors, *lines[-TAIL_LINES:]])


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return vLLM's command line for settings by their Python names; None is left out."""
    found = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            found += [f"--{option}", *map(str, value)]
        elif value is not None:
            found += [f"--{option}", str(value)]
    return found


def _start_error(tail: str) -> Exception:
    words = f"the vLLM server cannot start. Its last words:\n{tail}"
    full = "out of memory" in tail.lower()
    return (
        CapacityError(words)
        if full
        else ConfigError(f"{words}\nWhere that is of the model: {ADVICE}")
    )


def _is_healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
