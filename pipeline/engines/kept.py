"""What the stages of one process keep for each other: loaded teachers, the learner, proofs.

Promises: a thing is given only to who asks for exactly what it is, by a key that says all it was
made of; what failed is closed, not kept; with the block, or where memory is short, all is closed.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

SHARE = 0.25
"""Share of the machine's memory that must stay free; with less, nothing is kept."""


class Thing(Protocol):
    """Something that takes memory."""

    def close(self) -> None:
        """Give the memory back."""


T = TypeVar("T", bound=Thing)


class _Shelf:
    """Things by their place, each with its key, and what is known of others."""

    def __init__(self) -> None:
        self.things: dict[str, tuple[Any, Thing]] = {}
        self.known: set[Hashable] = set()

    def close(self) -> None:
        while self.things:
            self.things.popitem()[1][1].close()


_SHELF: ContextVar[_Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def keeping(wanted: bool) -> Iterator[None]:
    """Keep things within a block, for the stages that it runs."""
    if not wanted:
        yield
        return
    shelf = _Shelf()
    before = _SHELF.set(shelf)
    try:
        yield
    finally:
        _SHELF.reset(before)
        shelf.close()


def keeps() -> bool:
    """Return whether there is a block that keeps things."""
    return _SHELF.get() is not None


def take(place: str, key: Any) -> Any:
    """Return the thing of a place if it has that key, to be put back or closed; else None.

    Another thing that is there is closed.
    """
    shelf = _SHELF.get()
    found = None if shelf is None else shelf.things.pop(place, None)
    if found is None:
        return None
    if found[0] == key:
        return found[1]
    found[1].close()
    return None


def put(place: str, key: Any, thing: Thing) -> None:
    """Keep a thing for who asks next, or close it where nothing is kept or memory is short."""
    shelf = _SHELF.get()
    if shelf is None or _is_short():
        thing.close()
        return
    shelf.things[place] = (key, thing)


@contextmanager
def lent(make: Callable[[], T], *, place: str, key: Any, last: bool = False) -> Iterator[T]:
    """Give a thing for a block, a kept one or a new one, and keep it after a block without error.

    Args:
        make: makes a new one.
        place: where it is kept.
        key: all that it is made of.
        last: whether nobody asks for it afterwards, so that it is closed.
    """
    kept: T | None = take(place, key)
    thing = make() if kept is None else kept
    with ExitStack() as unless_done:
        unless_done.callback(thing.close)
        yield thing
        if not last:
            unless_done.pop_all()
            put(place, key, thing)


def once(key: Hashable) -> bool:
    """Return whether nobody asked for this key within the block; always, where nothing is kept."""
    shelf = _SHELF.get()
    return shelf is None or key not in shelf.known


def done(key: Hashable) -> None:
    """Remember that what a key stands for was done well."""
    shelf = _SHELF.get()
    if shelf is not None:
        shelf.known.add(key)


def _is_short() -> bool:
    import psutil

    memory = psutil.virtual_memory()
    return bool(memory.available < SHARE * memory.total)
