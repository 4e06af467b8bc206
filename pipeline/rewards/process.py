"""The process of a grader as opd sees it: started clean, asked with a time-out, ended always.

Promises: it has its own folder, its own process group, and an environment without credentials; no
more than a bound of what it writes is held; it ends with the block, and with opd, however that
ends. Not a sandbox: a grader may read and write what its user may.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.engines.environment import THREADS, passed_on
from pipeline.engines.processes import end_with_parent
from pipeline.store.disk.scratch import scratch
from schemas.foreign import excerpt, excerpt_end

WORKER = Path(__file__).with_name("worker.py")

START_S = 120.0
"""Seconds that the imports of a grader may take."""

END_S = 2.0
"""Seconds in which a process that closed its answers ends by itself."""

PIECE, LONGEST_ANSWER, KEPT = 1 << 16, 1 << 17, 4000
"""Bytes of a read, of an answer, and of what a grader printed."""


ANSWERS = {"ready", "begun", "value", "span", "error", "refused", "memory", "broken"}
"""What an answer has one of."""

TOLD = {"error": "raised", "refused": "no_number", "memory": "memory", "broken": "died"}
"""Answer that tells of a fault → kind of the fault."""

LIVING = frozenset({"raised", "no_number"})
"""Kinds of faults after which the process can grade another row."""

UNREAD = "unread"
"""Kind of the fault that a command reads no responses, which is one of no row."""

FAULTS = frozenset({*LIVING, "memory", "timed_out", "died"})
"""Kinds of faults that code which is not opd's may have on a row."""


class GraderFault(Exception):
    """A grader that cannot be used, or failed on a row, in words."""

    def __init__(self, words: str, kind: str, printed: str = "") -> None:
        """Tell what happened.

        Args:
            words: what it did.
            kind: one of `FAULTS`.
            printed: the end of what it printed, for earlier rows too.
        """
        super().__init__(f"{words}. It printed: {printed}" if printed else words)
        self.words, self.kind = words, kind


@contextmanager
def running_grader(start: Mapping[str, Any]) -> Iterator["GraderProcess"]:
    """Give a grader that is loaded, for the length of a block.

    Args:
        start: the first request of `worker.py`.

    Raises:
        GraderFault: it cannot be loaded.
    """
    with scratch("grader") as folder:
        process = GraderProcess(folder)
        try:
            process.load(start)
            yield process
        finally:
            process.close()


class GraderProcess:
    """A grader's process: requests go in, one answer for each row comes out."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: where it works.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**passed_on(THREADS), "TMPDIR": str(folder)},
            bufsize=0,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._in, self._out, self._err = (_pipe(self._process, n) for n in range(3))
        self._lines: deque[bytes] = deque()
        self._rest, self._said = b"", b""
        self._begins = False
        """Whether it says of each row when it has begun with it, for it may be starting."""

    def load(self, start: Mapping[str, Any], *, memory_bytes: int | None = None) -> None:
        """Have it load a grader.

        Args:
            start: the first request of `worker.py`.
            memory_bytes: most memory that it may have; None bounds it not.

        Raises:
            GraderFault: it cannot be loaded.
        """
        list(self.answers({**start, "memory_bytes": memory_bytes}, 1, START_S))
        self._begins = "command" in start

    def answers(
        self, request: Mapping[str, Any] | Sequence[Any], count: int, patience_s: float
    ) -> Iterator[dict[str, Any]]:
        """Send a request; yield its answers as they come.

        Args:
            request: what is sent.
            count: answers that it has.
            patience_s: seconds that each of them may take.

        Raises:
            GraderFault: one does not come, or tells of a fault.
        """
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            for stream in (self._out, self._err):
                selector.register(stream, selectors.EVENT_READ)
            for _ in range(count):
                if self._begins:
                    unsent = self._wait(selector, unsent, START_S, UNREAD)
                    self._checked(self._lines.popleft())
                unsent = self._wait(selector, unsent, patience_s, "timed_out")
                yield self._checked(self._lines.popleft())

    def kill(self) -> None:
        """End it and all that it started; safe in another thread than the one that asks it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it and all that it started, and forget it."""
        self.kill()
        self._process.wait()
        for stream in (self._in, self._out, self._err):
            with suppress(OSError):
                stream.close()

    def _wait(
        self, selector: selectors.BaseSelector, unsent: memoryview, patience_s: float, kind: str
    ) -> memoryview:
        """Write and read until there is a line; return what is still to be written."""
        deadline = time.monotonic() + patience_s
        while not self._lines:
            left = deadline - time.monotonic()
            if left <= 0:
                did = "did not read a response" if kind == UNREAD else "gave no answer"
                raise self._fault(f"{did} in {patience_s:g} s", kind)
            unsent = self._move(selector, unsent, left)
        return unsent

    def _move(
        self, selector: selectors.BaseSelector, unsent: memoryview, left: float
    ) -> memoryview:
        """Write and read what can be without waiting; return what is still to be written."""
        for key, _ in selector.select(left):
            if key.fileobj is self._in:
                unsent = self._write(unsent)
                if not unsent:
                    selector.unregister(self._in)
                continue
            data = os.read(key.fd, PIECE)
            if key.fileobj is self._out:
                self._take(data)
            elif data:
                self._said = (self._said + data)[-KEPT:]
            else:
                selector.unregister(self._err)
        return unsent

    def _write(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._in.fileno(), unsent[:PIECE]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:
            raise self._fault(self._end_in_words()) from None

    def _take(self, data: bytes) -> None:
        if not data:
            raise self._fault(self._end_in_words())
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(lines)
        if len(self._rest) > LONGEST_ANSWER:
            raise self._fault("wrote to the pipe of opd")

    def _checked(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not ANSWERS & set(answer):
            raise self._fault("wrote to the pipe of opd")
        for name in TOLD.keys() & answer.keys():
            words = f"raised {answer[name]}" if name == "error" else str(answer[name])
            raise self._fault(excerpt(words), TOLD[name])
        return answer

    def _end_in_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        code = self._process.poll()
        if code is None:
            return "closed the pipe to opd"
        if code < 0:
            return f"was killed by signal {-code} ({signal.strsignal(-code)}); did memory run out?"
        return f"ended its process with exit status {code}"

    def _fault(self, words: str, kind: str = "died") -> GraderFault:
        """Return what happened, with what the grader printed last."""
        with suppress(OSError):
            self._said = (self._said + os.read(self._err.fileno(), PIECE))[-KEPT:]
        said = self._said.decode(errors="replace").strip()
        return GraderFault(words, kind, excerpt_end(said))


def _pipe(process: subprocess.Popen[bytes], number: int) -> IO[bytes]:
    """Return a pipe of a process that never waits."""
    stream = (process.stdin, process.stdout, process.stderr)[number]
    assert stream is not None
    os.set_blocking(stream.fileno(), False)
    return stream
