"""An engine that is opened when it is first needed: once, with less where memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.engines.engine import Engine, Sample
from pipeline.engines.lazy import LazyEngine
from pipeline.scores.scores import Scores
from schemas.errors import CapacityError


class Small:
    """An engine with a memory that holds `holds` tokens, and halves what it tries."""

    name, version, vocab_size, context_length = "small", "1", 9, 9

    def __init__(self, tries: int = 64, *, least: int = 1) -> None:
        """Begin with `tries` tokens in a forward pass."""
        self.tries, self.least, self.closed = tries, least, 0

    def generate(self, *args: Any, **kwargs: Any) -> list[Sample]:
        """Refuse: nothing is sampled here."""
        raise AssertionError

    def score(self, *args: Any, **kwargs: Any) -> Scores:
        """Refuse: nothing is scored here."""
        raise AssertionError

    def shrink(self) -> bool:
        """Halve the tokens of a forward pass."""
        self.tries //= 2
        return self.tries >= self.least

    def close(self) -> None:
        """Count."""
        self.closed += 1


class Shelf:
    """Lends the engine that it has, or a new one, and keeps those of blocks that ended well."""

    def __init__(self, engine: Engine | None = None) -> None:
        """Have an engine, or none yet."""
        self.engine = engine

    @contextmanager
    def lend(self, open_new: Callable[[], Engine]) -> Iterator[Engine]:
        """Give an engine for a block."""
        engine, self.engine = self.engine or open_new(), None
        try:
            yield engine
        except BaseException:
            engine.close()
            raise
        self.engine = engine


def within(holds: int) -> Callable[[Any], int]:
    """Return work that a memory of some tokens has room for."""

    def work(engine: Any) -> int:
        if engine.tries > holds:
            raise CapacityError(f"no room for {engine.tries}")
        return int(engine.tries)

    return work


def test_an_engine_is_opened_at_its_first_use_and_closed_at_the_end() -> None:
    opened = list[Small]()

    def open_one() -> Small:
        opened.append(Small())
        return opened[-1]

    with LazyEngine(open_one, print):
        pass
    assert opened == []
    with LazyEngine(open_one, print) as engine:
        assert engine.get() is engine.get() is opened[0]
        assert opened[0].closed == 0
    with pytest.raises(KeyError), LazyEngine(open_one, print) as engine:
        engine.get()
        raise KeyError
    assert [one.closed for one in opened] == [1, 1]


def test_work_is_repeated_with_half_until_it_fits_and_each_time_is_told() -> None:
    notes, small = list[str](), Small()
    with LazyEngine(lambda: small, notes.append) as engine:
        assert engine.call(within(20)) == 16
        assert [note.split(";")[0] for note in notes] == ["no room for 64", "no room for 32"]
        assert engine.call(within(20)) == 16 and len(notes) == 2  # it is not tried with more again


def test_where_there_is_no_less_the_error_stands_and_the_engine_is_closed() -> None:
    notes, small = list[str](), Small(least=16)
    with (
        pytest.raises(CapacityError, match="no room for 16"),
        LazyEngine(lambda: small, notes.append) as engine,
    ):
        engine.call(within(15))
    assert len(notes) == 2 and small.closed == 1


def test_other_errors_of_the_work_are_not_tried_again() -> None:
    def fail(engine: Engine) -> None:
        raise ValueError

    small = Small()
    with LazyEngine(lambda: small, print) as engine, pytest.raises(ValueError):
        engine.call(fail)
    assert small.tries == 64


def test_an_engine_is_lent_at_its_first_use_and_given_back_open() -> None:
    shelf = Shelf(kept := Small())
    with LazyEngine(Small, print, shelf.lend) as engine:
        assert engine.get() is engine.get() is kept and shelf.engine is None
        assert engine.start_s == 0.0
    assert shelf.engine is kept and kept.closed == 0
    with LazyEngine(Small, print, shelf.lend):
        assert shelf.engine is kept  # it was not asked for


def test_who_lends_an_engine_is_told_of_an_error_and_may_take_a_new_one() -> None:
    shelf = Shelf(first := Small())
    with pytest.raises(KeyError), LazyEngine(Small, print, shelf.lend) as engine:
        engine.get()
        raise KeyError
    assert first.closed == 1 and shelf.engine is None
    with LazyEngine(Small, print, shelf.lend) as engine:
        second = engine.get()
        assert second is not first
    assert shelf.engine is second and isinstance(second, Small) and not second.closed
