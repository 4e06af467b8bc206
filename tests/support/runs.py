"""Driving of whole runs: the command line in this process or in another, and what a store holds."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Any
from weakref import WeakKeyDictionary

import psutil
import pytest

from cli.main import main
from pipeline.store.storage import Storage
from tests.support.repository import REPOSITORY
from tests.support.warm import Process, start_warm
from tests.support.warmserver import Request

PRINTED: WeakKeyDictionary[Process, tuple[IO[str], IO[str]]] = WeakKeyDictionary()
"""Files that started commands print to, stdout and stderr."""

LEFT_BY_COMMANDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHONSAFEPATH")
"""Variables that commands in this process set: with them, another would not start its own ranks, or
not find the tests."""

OF_ITS_CALLER = ("/metrics/times/", "/admission/", "/failed.json")
"""Where records lie that a run has by where and how its stages were called."""

OPD = ("cli.main",)
"""The module that is the command line."""


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """Return the JSON object in the last line of stdout."""
        found: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return found


@dataclass
class Quickstart:
    """A quickstart that runs in a process of its own."""

    folder: Path
    process: Process

    @property
    def config(self) -> Path:
        """Return the run.toml that it leaves behind."""
        return self.folder / "run.toml"

    @cached_property
    def outcome(self) -> Outcome:
        """Wait for it and return what it ended with."""
        return finish(self.process)


class Cli:
    """The command line, run in this process: fast, for torch is loaded once."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        """Take what the commands print."""
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run a command and return what it ended with."""
        self._capture.readouterr()
        with _arguments([str(a) for a in arguments]) as given:
            try:
                main(given)
            except SystemExit as end:
                code = end.code
        captured = self._capture.readouterr()
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    def ok(self, *arguments: str | Path) -> dict[str, Any]:
        """Run a command with `--json` that must succeed; return its result."""
        outcome = self(*arguments, "--json")
        assert outcome.code == 0, outcome.stderr
        return outcome.result


def start(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    launcher: tuple[str, ...] = OPD,
    cwd: Path = REPOSITORY,
    warm: bool = True,
) -> Process:
    """Start a command in a process of its own, with its own process group.

    It prints to files: a pipe that nobody reads for a while would fill up and stop it.

    Args:
        arguments: of the command.
        env: variables to add to this process's.
        launcher: module to run, with arguments that come before the command's.
        cwd: the folder that it starts in.
        warm: whether the process may be one that has imported what it needs already.
    """
    given = [str(argument) for argument in arguments]
    program = str(REPOSITORY / "cli" / "main.py")
    request = Request("cli.main:main", (), [program, *given], str(cwd), _environment(env))
    command = ["-m", *launcher, *given]
    return _started(request, command, warm=warm and launcher == OPD)


def start_function(
    function: Callable[..., int | None],
    *arguments: Any,
    env: Mapping[str, str] | None = None,
    warm: bool = True,
) -> Process:
    """Start a module's function in a process of its own, as `start` does with a command."""
    name = f"{function.__module__}:{function.__qualname__}"
    request = Request(name, arguments, [name], str(REPOSITORY), _environment(env))
    command = ["-m", "tests.support.warmserver", json.dumps(asdict(request))]
    return _started(request, command, warm=warm)


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_BY_COMMANDS}
    return {**kept, **(added or {})}


def _started(request: Request, command: Sequence[str], *, warm: bool) -> Process:
    """Start what is requested: in a warm process where that can be, else with Python's command."""
    printed = _output_file(), _output_file()
    process: Process | None = start_warm(request, *printed) if warm else None
    if process is None:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=request.cwd,
            env=request.env,
            stdout=printed[0],
            stderr=printed[1],
            text=True,
            start_new_session=True,
        )
    PRINTED[process] = printed
    return process


def finish(process: Process) -> Outcome:
    """Wait for a command and return what it ended with."""
    code = process.wait(timeout=550)
    texts = []
    for file in PRINTED.pop(process):
        with file:
            file.seek(0)
            texts.append(file.read())
    return Outcome(code, *texts)


def snapshot(storage: Storage, folder: str) -> dict[str, Any]:
    """Return what a run published below a folder: every JSON object, without what may differ.

    Attempts differ from process to process, times from call to call, trials from machine to
    machine; nothing else may.
    """
    found: dict[str, Any] = {}
    for key in keys_below(storage, folder):
        if key.endswith(".json") and not any(part in key for part in OF_ITS_CALLER):
            value = json.loads(storage.get(key) or b"")
            value.pop("attempt", None)
            value.pop("digest", None)  # it is of the attempt too
            found[key] = value
    return found


@contextmanager
def children_killed(folder: str) -> Iterator[list[int]]:
    """Kill every process that starts in a block, at the first write below a folder of a store.

    Gives their numbers, once it has happened.
    """
    resource_tracker.ensure_running()  # Python's own, for as long as this process lives
    own, write, killed = psutil.Process(), Storage._write, list[int]()
    before = set(own.children(recursive=True))

    def killing(self: Storage, key: str, action: Callable[[], None]) -> None:
        write(self, key, action)
        if key.startswith(folder) and not killed:
            started = set(own.children(recursive=True)) - before
            killed.extend(process.pid for process in started)
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(started)

    Storage._write = killing  # type: ignore[method-assign] # lets the real writes through
    try:
        yield killed
    finally:
        Storage._write = write  # type: ignore[method-assign]


def keys_below(storage: Storage, folder: str) -> list[str]:
    """Return the keys of all objects below a folder."""
    import fsspec

    root = storage.local_root
    if root is not None:
        found = (root / folder).rglob("*")
        paths = [p for p in found if p.is_file() and not p.name.startswith(".tmp-")]
        return sorted(str(p.relative_to(root)) for p in paths)
    filesystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    prefix = storage.root.removeprefix("s3://")
    names = filesystem.find(f"{prefix}/{folder}")
    return sorted(name.removeprefix(f"{prefix}/") for name in names)


def _output_file() -> IO[str]:
    return tempfile.TemporaryFile("w+")  # noqa: SIM115 - `finish` closes it


@contextmanager
def _arguments(given: list[str]) -> Iterator[list[str]]:
    """Make a command line look like the process's own for the length of a block.

    The signal handlers that the command sets are taken back: a pool's forked workers would inherit
    them, and not end when they are told to. So is what makes Python find no tests.
    """
    saved = sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.argv = ["opd", *given]
    try:
        yield given
    finally:
        sys.argv = saved
        os.environ.pop("PYTHONSAFEPATH", None)
        for number, handler in handlers.items():
            signal.signal(number, handler)
