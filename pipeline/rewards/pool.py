"""Rewards of many responses, where a fault costs its own row and nothing else.

Promises: each row has a reward or a fault, never a reward that stands for a fault; a row is given
up only after a process that had graded nothing before has failed on it; at most so many processes
as the configuration allows, each with bounded memory, and a time-out for each row.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.rewards.builtin import COMPARISONS, same_text
from pipeline.rewards.graders import Response
from pipeline.rewards.location import Grader
from pipeline.rewards.process import LIVING, UNREAD, GraderFault, GraderProcess
from pipeline.store import interrupts
from pipeline.store.disk.scratch import scratch
from schemas.config.evaluation import RewardSection
from schemas.errors import ConfigError
from schemas.foreign import excerpt


@dataclass(frozen=True)
class Verdict:
    """What a response earned: a reward, or the kind of a fault and what happened."""

    reward: float | None = None
    fault: str | None = None
    words: str | None = None
    told: str | None = None
    """The words, with what the grader printed last, for earlier rows too."""


Judge = Callable[[Sequence[Response]], list[Verdict]]

NO_REFERENCE = "no_reference"
"""Kind of the fault that a prompt has no reference which the grader can compare with."""


@contextmanager
def open_judge(grader: Grader, section: RewardSection) -> Iterator[Judge]:
    """Give what grades responses in order, for the length of a block.

    It raises a ConfigError where the grader cannot be loaded.

    Args:
        grader: which one.
        section: its bounds.
    """
    if not grader.start:
        yield partial(_compared, grader)
        return
    with _Pool(grader, section) as pool:
        yield pool.verdicts


def _compared(grader: Grader, responses: Sequence[Response]) -> list[Verdict]:
    interrupts.beat()
    return [_unanswered(one) or _comparison(grader.name, one) for one in responses]


def _comparison(name: str, one: Response) -> Verdict:
    try:
        return Verdict(COMPARISONS[name](one.text, one.reference or ""))
    except ValueError as error:
        words = f"{error} ({excerpt(one.reference or '', 100)!r})"
        return Verdict(fault=NO_REFERENCE, words=words)


def _unanswered(one: Response) -> Verdict | None:
    """Return the verdict on a response whose prompt has no reference, where one is needed."""
    if one.reference is not None:
        return None
    return Verdict(fault=NO_REFERENCE, words="its prompt has no 'reference'")


class _Pool:
    """Threads that each have a process of the grader."""

    def __init__(self, grader: Grader, section: RewardSection) -> None:
        self._members = [_Member(grader, section) for _ in range(section.processes)]
        # the kernel ends a process with the thread that started it: these stay until the end
        self._threads = ThreadPoolExecutor(section.processes, "grader")

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.close()
        self._threads.shutdown()

    def verdicts(self, responses: Sequence[Response]) -> list[Verdict]:
        """Return the verdict on each response."""
        todo = deque(range(len(responses)))
        found: list[Verdict] = [Verdict()] * len(responses)

        def work(member: "_Member") -> None:
            try:
                while todo:
                    index = todo.popleft()
                    found[index] = member.verdict(responses[index])
            except IndexError:
                return  # another thread was faster
            except BaseException:
                todo.clear()
                raise

        running = [self._threads.submit(work, member) for member in self._members]
        try:
            while wait(running, interrupts.POLL_S).not_done:
                interrupts.beat()
        except BaseException:
            todo.clear()
            while wait(running, interrupts.POLL_S).not_done:
                for member in self._members:
                    member.kill()
            raise
        for one in running:
            one.result()
        return found


class _Member:
    """One process of a grader, started when it is needed and after each end."""

    def __init__(self, grader: Grader, section: RewardSection) -> None:
        self._grader, self._section = grader, section
        self._stack = ExitStack()
        self._process: GraderProcess | None = None
        self._graded = 0
        """Rows that the process has graded."""

    def verdict(self, response: Response) -> Verdict:
        """Return the verdict on a response."""
        pattern = "pattern" in self._grader.start
        if self._grader.compares and (unanswered := _unanswered(response)):
            return unanswered
        try:
            answer = self._asked(_row(response, pattern=pattern))
        except GraderFault as fault:
            return Verdict(fault=fault.kind, words=fault.words, told=str(fault))
        if not pattern:
            return Verdict(float(answer["value"]))
        begin, end = answer["span"]
        found = response.text[begin:end] if begin >= 0 else None
        return Verdict(0.0 if found is None else same_text(found, response.reference or ""))

    def kill(self) -> None:
        """End the process, whoever waits for it."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process and remove its folder."""
        self._process = None
        self._stack.close()

    def _asked(self, row: Sequence[Any]) -> dict[str, Any]:
        """Return the answer to a row; one that a used process fell over is asked once more."""
        used = self._process is not None and self._graded > 0
        try:
            return self._once(row)
        except GraderFault as fault:
            if fault.kind in LIVING or not used:
                raise
        return self._once(row)

    def _once(self, row: Sequence[Any]) -> dict[str, Any]:
        process = self._process or self._started()
        try:
            (answer,) = process.answers([row], 1, self._section.timeout_s)
        except GraderFault as fault:
            self._graded += 1
            if fault.kind not in LIVING:
                self.close()
            if fault.kind == UNREAD and self._graded == 1:
                raise ConfigError(f"{self._grader.choice} cannot be used: it {fault}") from fault
            raise
        self._graded += 1
        return answer

    def _started(self) -> GraderProcess:
        folder = self._stack.enter_context(scratch("grader"))
        self._process = process = GraderProcess(folder)
        self._stack.callback(process.close)
        self._graded = 0
        try:
            memory = int(self._section.memory_gb * 2**30)
            process.load(self._grader.start, memory_bytes=memory)
        except GraderFault as error:
            self.close()
            raise ConfigError(f"{self._grader.choice} cannot be loaded: it {error}") from error
        return process


def _row(one: Response, *, pattern: bool) -> tuple[str, str | None, str | None]:
    return (one.text, None, None) if pattern else (one.text, one.reference, one.metadata)
