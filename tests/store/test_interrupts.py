"""A signal ends the work at the next safe point, once, and whatever library is in between."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.runs.leases import Leases
from pipeline.store import interrupts
from pipeline.store.attempts import Pace, bounded
from pipeline.store.retry import with_retries
from pipeline.store.storage import Storage
from schemas.errors import StorageError


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    interrupts.forget()


def test_a_safe_point_raises_once_so_that_what_is_held_can_be_given_back() -> None:
    interrupts.check()
    interrupts.ask()
    with pytest.raises(interrupts.Interrupted):
        interrupts.check()
    interrupts.check()
    assert bounded(lambda: 7, Pace()) == 7


def test_other_threads_stop_at_their_safe_points_too() -> None:
    interrupts.ask()
    interrupts.settle()
    seen: list[BaseException] = []

    def work() -> None:
        try:
            interrupts.beat()
        except interrupts.Interrupted as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1


def asked_soon() -> None:
    threading.Timer(0.2, interrupts.ask).start()


def test_a_pause_is_ended() -> None:
    asked_soon()
    with pytest.raises(interrupts.Interrupted):
        interrupts.pause(3600)


def test_a_request_that_hangs_is_ended() -> None:
    never = threading.Event()
    asked_soon()
    with pytest.raises(interrupts.Interrupted):
        bounded(never.wait, Pace(silence_s=3600))
    never.set()


def test_patience_with_a_store_is_ended() -> None:
    def fail() -> None:
        raise ConnectionResetError("reset")

    asked_soon()
    with pytest.raises(interrupts.Interrupted):
        with_retries(fail, what="reading x", patience_s=3600)


def test_giving_back_is_not_patient() -> None:
    def fail() -> None:
        raise ConnectionResetError("reset")

    interrupts.ask()
    interrupts.settle()
    with pytest.raises(StorageError, match="failed for 3 s"):
        with_retries(fail, what="reading x", patience_s=3600)


def test_a_beat_tells_that_the_work_goes_on() -> None:
    time.sleep(0.02)
    assert interrupts.silence_s() >= 0.02
    begun = time.monotonic()
    interrupts.beat()
    assert interrupts.silence_s() <= time.monotonic() - begun


def test_a_signal_that_comes_as_something_is_given_back_is_not_lost(memory: Storage) -> None:
    with Leases(memory, "stage") as leases:
        leases.take("u0")
        interrupts.ask()  # no safe point follows before the block ends
    with pytest.raises(interrupts.Interrupted):
        interrupts.check()


def test_what_a_signal_ends_is_given_back_without_another_end(memory: Storage) -> None:
    with pytest.raises(interrupts.Interrupted), Leases(memory, "stage") as leases:
        leases.take("u0")
        interrupts.ask()
        interrupts.check()
    interrupts.check()
    assert memory.names("stage/leases") == set()
