"""An attempt ends in time however the store behaves, and not before."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store.attempts import IDLE, Attempt, Pace, bounded, current
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.errors import StorageError
from tests.conftest import ProxyFactory, UseS3
from tests.support.faults import DRIP
from tests.support.servers import S3Account

HASTY = StorageSection(
    retry_s=0.5, connect_timeout_s=0.3, read_timeout_s=0.5, min_bytes_per_s=10_000.0
)

PATIENT = {"min_bytes_per_s": 1.0, "read_timeout_s": 2.0, "retry_s": 20.0}
"""What 150 bytes that drip for three seconds need, with room for a busy machine."""


def test_the_result_and_the_error_of_an_action_come_through() -> None:
    assert bounded(lambda: 7, Pace()) == 7
    with pytest.raises(KeyError, match="mine"):
        bounded(lambda: dict[str, int]()["mine"], Pace())


def test_an_error_does_not_take_on_what_its_caller_is_handling() -> None:
    def fail() -> None:
        raise ConnectionResetError("reset")

    try:
        raise FileExistsError("the caller's")
    except FileExistsError:
        with pytest.raises(ConnectionResetError) as caught:
            bounded(fail, Pace())
    assert caught.value.__context__ is None


def test_an_action_that_never_ends_is_given_up() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match="storage.read_timeout_s"):
        bounded(never.wait, Pace(silence_s=0.3))
    never.set()


def test_what_is_under_way_is_cancelled_when_it_is_given_up() -> None:
    cancelled = threading.Event()

    def hang() -> None:
        current().on_cancel(cancelled.set)
        assert cancelled.wait(120)

    with pytest.raises(TimeoutError):
        bounded(hang, Pace(silence_s=0.3))
    assert cancelled.is_set()


def test_bytes_that_arrive_fast_enough_buy_time_and_slower_ones_do_not() -> None:
    attempt = Attempt(Pace(silence_s=2.0, min_bytes_per_s=100.0))
    for _ in range(50):
        assert attempt.pass_time(1.0)
        attempt.arrived(100)
    for _ in range(50):
        attempt.arrived(1)
        if not attempt.pass_time(1.0):
            return
    pytest.fail("one byte per second was waited for")


def test_bytes_that_came_in_a_rush_buy_no_time_for_a_silence_later() -> None:
    attempt = Attempt(Pace(silence_s=2.0, min_bytes_per_s=100.0))
    attempt.arrived(1_000_000)
    assert [attempt.pass_time(1.0) for _ in range(2)] == [True, False]


def test_the_size_of_what_is_written_buys_time() -> None:
    attempt = Attempt(Pace(silence_s=2.0, min_bytes_per_s=100.0))
    attempt.expect(1000)
    assert [attempt.pass_time(1.0) for _ in range(12)] == [True] * 11 + [False]


def test_time_for_which_the_process_stood_still_does_not_count() -> None:
    attempt = Attempt(Pace(silence_s=2.0))
    assert attempt.pass_time(3600.0)


def dripped_calls(storage: Storage, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "GET": lambda: storage.get("folder/key"),
        "LIST": lambda: storage.names("folder"),
        "PUT": lambda: storage.put("folder/key", b"1"),
        "HEAD": lambda: storage.exists("folder/key"),
        "DELETE": lambda: storage.delete("folder/key"),
    }


def test_a_server_that_drips_is_given_up_by_every_verb(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory, tmp_path: Path
) -> None:
    root = use_s3(moto_server)
    Storage(root, HASTY).put("folder/key", os.urandom(1 << 16))
    proxy = fault_proxy(moto_server.endpoint, {DRIP: 1.0})
    use_s3(moto_server.at(proxy.endpoint))
    calls = dripped_calls(Storage(root, HASTY), tmp_path)
    with ThreadPoolExecutor(len(calls)) as pool:
        errors = {verb: pool.submit(call).exception() for verb, call in calls.items()}
    for verb, error in errors.items():
        assert isinstance(error, StorageError), verb
        assert "failed for 0 s" in str(error), verb


def test_a_slow_reply_that_is_fast_enough_is_read_to_its_end(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    root, data = use_s3(moto_server), os.urandom(150)
    Storage(root, HASTY).put("key", data)
    proxy = fault_proxy(moto_server.endpoint)
    use_s3(moto_server.at(proxy.endpoint))
    patient = HASTY.model_copy(update=PATIENT)
    storage = Storage(root, patient)
    proxy.force(DRIP, method="GET")
    assert storage.get("key") == data
    assert proxy.counts == {DRIP: 1}


def test_a_pipe_where_a_file_should_be_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    with pytest.raises(StorageError, match="no file but a pipe"):
        Storage(str(tmp_path)).get("key")


def test_a_thread_that_was_left_behind_is_used_again_once_it_is_free() -> None:
    release = threading.Event()
    seen = bounded(threading.get_ident, Pace())

    def hang() -> None:
        assert release.wait(120)

    with pytest.raises(TimeoutError):
        bounded(hang, Pace(silence_s=0.2))
    assert bounded(threading.get_ident, Pace()) != seen
    release.set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if seen in threads_of_a_meeting(len(IDLE) or 1):
            return
    pytest.fail("the thread did not come back")


def threads_of_a_meeting(size: int) -> set[int]:
    """Return the threads of attempts none of which ends before all have begun."""
    meeting = threading.Barrier(size)

    def meet() -> int:
        meeting.wait()
        return threading.get_ident()

    with ThreadPoolExecutor(size) as pool:
        met = [pool.submit(bounded, meet, Pace()) for _ in range(size)]
    return {future.result() for future in met}
