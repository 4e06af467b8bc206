"""Two processes on one store, in every order of their requests that can make a difference.

Each actor runs in a thread and stops before every request to the store, until it is told to go on.
All orders are tried, except those that only swap requests which do not touch the same object or
listing: of these one stands for all.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import fsspec

from pipeline.store.storage import Storage
from schemas.keys import sweep_key

WRITES = ("write", "replace", "upload", "delete", "discard")
LISTINGS = ("names", "folders")
MARK = f"/{sweep_key()}"

Actor = Callable[[Storage], None]


class KilledError(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Step:
    """A request: what it does to which name."""

    verb: str
    name: str

    def meets(self, other: "Step", lasting: frozenset[str]) -> bool:
        """Return whether the order of two requests can matter.

        Args:
            other: the other request.
            lasting: folders that are there whatever happens.
        """
        if self.verb not in WRITES and other.verb not in WRITES:
            return False
        reads, writes = (other, self) if self.verb in WRITES else (self, other)
        if reads.verb not in LISTINGS:
            return self.name == other.name
        folder, _, rest = writes.name.partition(f"{reads.name}/")
        parts = rest.split("/")
        if folder or not rest or (len(parts) == 1) != (reads.verb == "names"):
            return False
        return len(parts) == 1 or f"{reads.name}/{parts[0]}" not in lasting


@dataclass
class _Gate:
    """Where one actor waits for its turn."""

    kill_at: int | None = None
    pending: Step | None = None
    ended: bool = False
    error: BaseException | None = None
    done: list[Step] = field(default_factory=list)


class _Stepped:
    """A backend whose requests wait for their turn."""

    def __init__(self, backend: Any, turns: "_Turns", number: int) -> None:
        self._backend, self._turns, self._number = backend, turns, number

    def __getattr__(self, verb: str) -> Any:
        action = getattr(self._backend, verb)

        def stepped(name: Any, *rest: Any, **named: Any) -> Any:
            shown = name if isinstance(name, str) else name[0][0]
            self._turns.wait(self._number, Step(verb, shown))
            return action(name, *rest, **named)

        return stepped


class _Turns:
    """One run of the actors, in an order of turns that is chosen as it goes."""

    def __init__(self, root: str, actors: list[Actor], kill_at: int | None) -> None:
        self._lasting = _folders(root)
        self._lock = threading.Condition()
        self.gates = [_Gate(kill_at if n == 0 else None) for n in range(len(actors))]
        self.last: int | None = None
        self._turns = list[tuple[int, Step]]()
        self._threads = []
        for number, actor in enumerate(actors):
            storage = Storage(root)
            storage._backend = _Stepped(storage._backend, self, number)
            thread = threading.Thread(target=self._run, args=(number, actor, storage), daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, actor: Actor, storage: Storage) -> None:
        gate = self.gates[number]
        try:
            actor(storage)
        except KilledError:
            pass
        except BaseException as error:
            gate.error = error
        with self._lock:
            gate.ended = True
            self._lock.notify_all()

    def wait(self, number: int, step: Step) -> None:
        """Stop until it is this actor's turn."""
        gate = self.gates[number]
        with self._lock:
            gate.pending = step
            self._lock.notify_all()
            self._lock.wait_for(lambda: gate.pending is None, timeout=120)
        if gate.kill_at is not None and len(gate.done) > gate.kill_at:
            raise KilledError

    def settle(self) -> None:
        """Wait until every actor stands before a request or has ended."""
        with self._lock:
            still = self._lock.wait_for(
                lambda: all(gate.ended or gate.pending for gate in self.gates), timeout=120
            )
        assert still, "an actor neither ends nor asks for anything"

    def able(self) -> list[int]:
        """Return the actors that can go on; one that waits for a sweep cannot until it changes."""
        return [n for n, gate in enumerate(self.gates) if gate.pending and not self._waits(n)]

    def _waits(self, number: int) -> bool:
        gate = self.gates[number]
        asked = [*gate.done[-2:], gate.pending]
        polls = len(asked) == 3 and all(step and step.name.endswith(MARK) for step in asked)
        since = list(takewhile(lambda turn: turn[0] != number, reversed(self._turns)))
        return polls and not any(step.name.endswith(MARK) for _, step in since)

    def go(self, number: int) -> None:
        """Let an actor make the request that it stands before."""
        gate = self.gates[number]
        with self._lock:
            assert gate.pending is not None
            gate.done.append(gate.pending)
            self._turns.append((number, gate.pending))
            gate.pending, self.last = None, number
            self._lock.notify_all()
        self.settle()

    def choices(self) -> list[int]:
        """Return the actors that may go next, without orders for which another one stands."""
        able = self.able()
        if self.last is None:
            return able
        latest = self.gates[self.last].done[-1]
        return [
            n
            for n in able
            if n >= self.last or latest.meets(self.gates[n].pending or latest, self._lasting)
        ]

    def finish(self) -> None:
        """End a run whose order another one stands for."""
        while not all(gate.ended for gate in self.gates):
            able = self.able() or [n for n, gate in enumerate(self.gates) if gate.pending]
            self.go(able[0])


def _folders(root: str) -> frozenset[str]:
    """Return the full names of the folders that hold an object called `lasting`."""
    storage, found = Storage(root), set[str]()
    prefix = storage._folder("").rstrip("/")

    def look(folder: str) -> None:
        if "lasting" in storage.names(folder):
            parts = folder.split("/")
            found.update(f"{prefix}/{'/'.join(parts[:n])}" for n in range(1, len(parts) + 1))
        for name in storage.folders(folder):
            look(f"{folder}/{name}".lstrip("/"))

    look("")
    return frozenset(found)


def every_order(
    prepare: Callable[[], str], actors: list[Actor], *, kill_at: int | None = None
) -> Iterator[str]:
    """Yield the root after each run of two actors, for every order of their requests.

    Args:
        prepare: makes a root; returns its URL.
        actors: what the two processes do.
        kill_at: requests after which the first one is killed; None for never.
    """
    path: list[int] = []
    while True:
        root = prepare()
        turns = _Turns(root, actors, kill_at)
        turns.settle()
        depth, left, pruned = 0, list[list[int]](), False
        while not all(gate.ended for gate in turns.gates):
            choices = turns.choices()
            if not choices:
                pruned = True
                turns.finish()
                break
            if depth == len(path):
                path.append(choices[0])
            left.append(choices[choices.index(path[depth]) :])
            turns.go(path[depth])
            depth += 1
        for gate in turns.gates:
            if gate.error is not None:
                raise gate.error
        if not pruned:
            yield root
        fsspec.filesystem("memory").rm(root, recursive=True)  # a listing looks through all roots
        path = path[:depth]
        while path and len(left[len(path) - 1]) < 2:
            path.pop()
        if not path:
            return
        path[-1] = left[len(path) - 1][1]
