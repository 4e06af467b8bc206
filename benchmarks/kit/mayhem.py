"""Processes of `opd` that die at random moments, and an S3 server that dies with them.

Promises: every signal is counted, and only those that met a living process; each process is one of
ours and is ended by its own number.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from tests.support.faults import FaultProxy
from tests.support.runs import Outcome, finish, start
from tests.support.servers import SeaweedServer
from tests.support.warm import Process

PASSING = {0, 6, 130}
"""Exit codes of a command that was disturbed from outside: done, the store, a signal."""

ENDS = {signal.SIGKILL: 0.8, signal.SIGTERM: 0.15, signal.SIGSTOP: 0.05}
"""What a victim gets, and how often."""

PAUSE_S = (0.05, 0.8)
"""Shortest and longest time between two blows."""

SERVER_SHARE, CHILD_SHARE = 0.02, 0.3
"""How often a blow meets the S3 server; how often a child of a command, where it has one."""

STOPPED_S = 3.0
"""Seconds for which a stopped process sleeps: longer than its lease."""

HANG_S = 300.0
"""Seconds after which a command that is left alone should have ended."""


@dataclass
class Command:
    """A command line that is started again whenever it has ended before it should."""

    name: str
    lines: Sequence[Sequence[str]]
    """Arguments of `opd`; of several lines, each start takes any."""
    endless: bool = False
    """Whether it is started again after exit code 0 too."""
    ready: Callable[[], bool] = lambda: True
    """Whether there is something for it to work on."""
    process: Process | None = None
    line: str = ""
    """How the line that runs begins."""
    started_s: float = 0.0
    done: bool = False


@dataclass
class Mayhem:
    """Commands that run at once over one store, and the blows that they get."""

    commands: Sequence[Command]
    server: SeaweedServer
    proxy: FaultProxy
    environ: Mapping[str, str]
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    """Signals and restarts by name, over all commands."""
    wrong: list[str] = field(default_factory=list)
    """Ends that no disturbance explains."""

    def run(self, blows: int) -> None:
        """Strike some times, then let the commands that are to end come to their end."""
        left = blows
        while not all(command.done or command.endless for command in self.commands):
            self._keep_running()
            time.sleep(self.chance.uniform(*PAUSE_S))
            if left > 0 and self._strike():
                left -= 1
        self._end_all()

    def _keep_running(self) -> None:
        for command in self.commands:
            if command.process is not None and command.process.poll() is not None:
                self._ended(command, finish(command.process))
                command.process = None
            late = time.monotonic() - command.started_s
            if command.process is not None and late > HANG_S:
                self.wrong.append(f"{command.line} hung for {late:.0f} s")
                _kill_tree(command.process)
                continue
            if command.process is None and not command.done and command.ready():
                line = self.chance.choice(command.lines)
                command.line = " ".join(line[:2])
                command.process = start(*line, env=self.environ)
                command.started_s = time.monotonic()
                self.counts["starts"] += 1

    def _ended(self, command: Command, outcome: Outcome) -> None:
        told = outcome.stderr.strip().splitlines()
        if outcome.code not in PASSING and outcome.code >= 0 or "Traceback" in outcome.stderr:
            words = "\n".join(told[-12:])
            self.wrong.append(f"{command.line} ended with {outcome.code}: {words}")
        self.counts[f"exit {outcome.code}"] += 1
        command.done = outcome.code == 0 and not command.endless

    def _strike(self) -> bool:
        """Send a signal to something that lives; return whether it was hit."""
        if self.chance.random() < SERVER_SHARE:
            self.server.kill()
            time.sleep(self.chance.uniform(0.0, 1.0))
            self.server.start()
            self.proxy.upstream = ("127.0.0.1", int(self.server.endpoint.rpartition(":")[2]))
            self.counts["server SIGKILL"] += 1
            return True
        alive = [c for c in self.commands if c.process is not None and c.process.poll() is None]
        if not alive:
            return False
        command = self.chance.choice(alive)
        assert command.process is not None
        number = self.chance.choices(list(ENDS), list(ENDS.values()))[0]
        victim = self._victim(command.process)
        if victim is None:
            return False
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
            self.counts[number.name] += 1
            if number == signal.SIGSTOP:
                time.sleep(STOPPED_S)
                victim.send_signal(signal.SIGCONT)
            return True
        return False

    def _victim(self, process: Process) -> psutil.Process | None:
        """Return the process of a command, or one of its children."""
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(process.pid)
            children = whole.children(recursive=True)
            if children and self.chance.random() < CHILD_SHARE:
                self.counts["children hit"] += 1
                return self.chance.choice(children)
            return whole
        return None

    def _end_all(self) -> None:
        for command in self.commands:
            if command.process is not None:
                command.process.terminate()
                self._ended(command, finish(command.process))
                command.process = None


def _kill_tree(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
