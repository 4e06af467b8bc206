"""Things made ahead by a thread: in order, few at a time, errors in their turn, an end in time."""

import threading
import time
from collections.abc import Callable

import pytest

from pipeline.learner.feed.ahead import DEPTH, Ahead
from pipeline.store import interrupts
from schemas.errors import DataError


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, which it does soon."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "opd-ahead"]


def test_things_are_taken_in_order_and_few_are_made_ahead() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Ahead(make, range(1000)) as ahead:
        for number in range(900):
            assert ahead.take() == number * number
            assert len(made) <= number + 1 + DEPTH + 1
        until(lambda: len(made) == 900 + DEPTH + 1)
        assert threads() == ["opd-ahead"]
    assert not threads()
    assert len(made) <= 900 + DEPTH + 2


def test_an_error_is_raised_where_its_turn_comes() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise DataError("the shard is damaged")
        return number

    with Ahead(make, range(9)) as ahead:
        until(lambda: not threads())
        assert [ahead.take(), ahead.take()] == [0, 1]
        with pytest.raises(DataError, match="the shard is damaged"):
            ahead.take()


def test_the_thread_ends_with_a_block_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), Ahead(str, range(99)) as ahead:
        ahead.take()
        raise ZeroDivisionError
    assert not threads()


def test_a_signal_ends_who_waits_and_who_makes() -> None:
    def make(_: int) -> None:
        while True:
            time.sleep(0.01)
            interrupts.check()

    try:
        with pytest.raises(interrupts.Interrupted), Ahead(make, range(9)) as ahead:
            interrupts.ask()
            ahead.take()
    finally:
        interrupts.forget()
    assert not threads()


def test_waiting_is_counted() -> None:
    gate = threading.Event()

    def make(number: int) -> int:
        gate.wait()
        return number

    with Ahead(make, range(2)) as ahead:
        threading.Timer(0.05, gate.set).start()
        ahead.take()
        assert ahead.waited_s > 0.0
