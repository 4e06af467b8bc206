"""One call of the command line `opd` as a process: its arguments, its end, what is told of it.

Promises: what the process prints is logged line by line; it ends with the process that started it,
and after SIGTERM it has a while to end well. Standard library only.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

REPEATED = frozenset({6, 7, 130, 128 + signal.SIGKILL, 128 + signal.SIGTERM})
"""Exit codes after which the same call may succeed: storage, capacity, and interruptions."""
MOST_ITEMS = 256
"""Longest list that goes to XCom."""
DRAIN_S = 60.0
"""Seconds to read what an ended process printed; another session may hold its streams open."""


@dataclass(frozen=True)
class Call:
    """One command of `opd` and its options, some of which are Params of the DAG run."""

    command: tuple[str, ...]
    """Such as `("score",)` or `("cache", "verify")`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Option → value. None, "" and False leave it out, True is a flag, a list repeats it; `{name}`
    in a text stands for a Param."""
    from_params: Mapping[str, str] = field(default_factory=dict)
    """Option → name of the Param that it takes its value from."""
    returns: str | None = None
    """Key of the result that tasks are mapped over; the whole is XCom `result` then."""
    needs: tuple[str, str] | None = None
    """Task and key of its XCom `result` without which there is nothing to do: a skipped task."""

    def command_line(self, params: Mapping[str, Any], each: Mapping[str, Any]) -> list[str]:
        """Return the arguments of `opd`.

        Args:
            params: the DAG run's Params.
            each: options of this mapped call; `worker` is its number alone.
        """
        given = [(name, _filled(value, params)) for name, value in self.options.items()]
        given += [(name, params.get(key)) for name, key in self.from_params.items()]
        given += [(name, value) for name, value in each.items() if name != "worker"]
        line = list(self.command)
        for name, value in given:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if item is True:
                    line.append(f"--{name}")
                elif item is not None and item is not False and item != "":
                    line += [f"--{name}", str(item)]
        return [*line, "--json"]


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: int
    """Exit code; negative for the signal that killed it."""
    result: dict[str, Any]
    """The JSON object in the last line of stdout; empty where there is none."""

    @property
    def may_be_repeated(self) -> bool:
        """Return whether the same call may succeed later."""
        return self.code < 0 or self.code in REPEATED

    def in_words(self) -> str:
        """Return what happened, for a task's log."""
        if self.code < 0:
            return f"opd was killed by {signal.Signals(-self.code).name}"
        told = self.result.get("error", "its output is above")
        return f"opd ended with exit code {self.code}: {told}"


def brief(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a result goes to XCom: names, counts, and the short lists of a plan."""
    scalars = (str, int, float, bool, type(None))
    kept = {key: value for key, value in result.items() if isinstance(value, scalars)}
    calls = {
        key: value
        for key, value in result.items()
        if isinstance(value, list) and len(value) <= MOST_ITEMS and result.get("stage") == "plan"
    }
    return {**kept, **calls}


def find_opd(variables: Mapping[str, str]) -> list[str]:
    """Return the command of `OPD_BIN`, such as `/opt/opd/bin/opd`.

    Raises:
        FileNotFoundError: it is not set, or not there.
    """
    text = variables.get("OPD_BIN", "")
    words = shlex.split(text)
    if not words:
        raise FileNotFoundError(
            "OPD_BIN is not set on this worker: set it to the full path of the command opd in the "
            "environment where the stages are installed, such as /opt/opd/bin/opd"
        )
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(
            f"OPD_BIN = {text}: {words[0]} is no program on this worker; install opd there, or "
            "correct the path"
        )
    return words


class CommandProcess:
    """A running call, in a process group of its own."""

    def __init__(self, line: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it.

        Args:
            line: program and arguments.
            env: variables beside those of this process.
        """
        self._process = subprocess.Popen(
            line,
            env={**os.environ, "OPD_END_WITH_PARENT": "1", "PYTHONSAFEPATH": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def wait(self, log: Callable[[str], None]) -> Outcome:
        """Log what it prints until it ends; return how. What it left behind ends with it."""
        last: list[str] = [""]
        assert self._process.stdout is not None and self._process.stderr is not None
        pairs = ((self._process.stdout, last), (self._process.stderr, [""]))
        readers = [threading.Thread(target=_read, args=(s, log, kept)) for s, kept in pairs]
        for reader in readers:
            reader.daemon = True
            reader.start()
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # they would hold its streams open
        for reader in readers:
            reader.join(DRAIN_S)
        return Outcome(code, _json(last[0]))

    def stop(self, patience_s: float) -> None:
        """End it and all that it started, with SIGTERM first."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _filled(value: Any, params: Mapping[str, Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_filled(item, params) for item in value]
    return value.format_map(params) if isinstance(value, str) else value


def _read(stream: IO[str], log: Callable[[str], None], last: list[str]) -> None:
    for line in stream:
        if line.strip():
            last[0] = line.rstrip()
            log(last[0])


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
