"""Processes that tell trackers of a run while it goes on.

Promises: who runs the stages never waits for a tracker, but at its end, and then for no longer than
`track.wait_s`; a tracker that hangs or dies takes nothing with it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipeline.runs.run import Run
from pipeline.store.paths import at_home, located
from pipeline.trackers.sending import Report, Sender
from pipeline.trackers.tracker import local_path

FOLLOWED = "OPD_FOLLOWED"
"""Variable that is set where a process that started this one tells the trackers."""

Tell = Callable[[str], None]


@dataclass
class _Child:
    """A process that tells one tracker; it reads a byte for each time to look, and writes words."""

    kind: str
    process: "subprocess.Popen[bytes]"

    def wake(self) -> None:
        """Ask it to look, unless it is asked already: a full pipe has asked."""
        assert self.process.stdin is not None
        with suppress(OSError):
            os.write(self.process.stdin.fileno(), b"\n")

    def words(self) -> Iterator[str]:
        """Yield what it has told since it was asked last."""
        assert self.process.stdout is not None
        with suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), 65536):
                yield from data.decode("utf-8", "replace").splitlines()


@contextmanager
def following(run: Run, arguments: Sequence[str], tell: Tell) -> Iterator[Callable[[], None]]:
    """Give what is to be called where a round or an evaluation was stored.

    Args:
        run: the run.
        arguments: of the command line that names its configuration.
        tell: is told in words what failed.
    """
    section = run.config.track
    if section is None or FOLLOWED in os.environ:
        yield lambda: None
        return
    os.environ[FOLLOWED] = "1"
    children = list[_Child]()

    def told() -> None:
        if not children:
            children.extend(_children(run, arguments, tell))
        for child in children:
            child.wake()
            for words in child.words():
                tell(words)

    try:
        yield told
    finally:
        del os.environ[FOLLOWED]
        _end(children, section.wait_s, tell)


def _children(run: Run, arguments: Sequence[str], tell: Tell) -> Iterator[_Child]:
    section = run.config.track
    assert section is not None
    for kind in section.kinds:
        try:
            command = [_python(run), "-P", "-m", "cli.main", "track", *arguments]
            process = subprocess.Popen(
                [*command, "--follow", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the stages; it ends after them
            )
        except OSError as error:
            tell(f"tracker {kind}: track.python cannot be started: {error.strerror}")
            continue
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        yield _Child(kind, process)


def _python(run: Run) -> str:
    """Return the Python that has the libraries.

    That of a venv is a link, which is not followed: where it leads to, there are none of them.
    """
    section = run.config.track
    if section is None or section.python is None:
        return sys.executable
    path = at_home(located(section.python).path)
    return str(path if path.is_absolute() else local_path(run.place, ".") / path)


def _end(children: Sequence[_Child], wait_s: float, tell: Tell) -> None:
    """Wait until the trackers have everything, and end those that do not get there."""
    deadline = time.monotonic() + wait_s
    for child in children:
        assert child.process.stdin is not None
        child.process.stdin.close()
    for child in children:
        late = False
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
            late = True
        for words in child.words():
            tell(words)
        if late:
            tell(
                f"tracker {child.kind}: it had not taken everything after {wait_s:g} s "
                "(track.wait_s); `opd track` sends the rest"
            )
        elif child.process.returncode:
            tell(f"tracker {child.kind}: its process ended with {child.process.returncode}")
        assert child.process.stdout is not None
        child.process.stdout.close()


def follow(run: Run, kind: str, report: Report | None) -> None:
    """Be the process that tells one tracker, until who started it closes its end of the pipe."""
    section = run.config.track
    assert section is not None
    words = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    quiet()
    with suppress(OSError):
        os.nice(5)
    due, over = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(due, over, section.wait_s), daemon=True).start()
    sender = Sender(run, kind, lambda line: print(line, file=words))
    is_last = False
    while not is_last:
        due.wait()
        due.clear()
        is_last = over.is_set()  # asked first: what was stored before it is looked for
        sender.catch_up()
    sender.finish(report)


def _listen(due: threading.Event, over: threading.Event, wait_s: float) -> None:
    """Take bytes as they come; at the end of them, be gone after a while, whatever hangs."""
    while os.read(0, 65536):
        due.set()
    # the kernel ends it then, for a library may hold the interpreter
    signal.setitimer(signal.ITIMER_REAL, wait_s + 5.0)
    over.set()
    due.set()


def quiet() -> None:
    """Send what libraries print nowhere: a terminal, and JSON on stdout, are the command's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
