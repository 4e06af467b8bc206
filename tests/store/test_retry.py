"""What is repeated, what is final, and what the last message says."""

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from pipeline.store.faults import s3_code
from pipeline.store.retry import with_retries
from schemas.errors import StorageError
from schemas.faults import NUMBERS


class Clock:
    """A clock that advances by the pauses asked of it."""

    def __init__(self) -> None:
        """Start at 0."""
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        """Advance the time."""
        self.now_s += pause_s
        self.pauses.append(pause_s)


class CodedError(Exception):
    """An S3 client error, as botocore shapes it."""

    def __init__(self, code: str) -> None:
        """Shape an error of a code."""
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("pipeline.store.retry.time", made)
    monkeypatch.setattr("pipeline.store.retry.pause", made.sleep)
    return made


def failing(*errors: Exception) -> Callable[[], str]:
    left: Iterator[Exception] = iter(errors)

    def action() -> str:
        for error in left:
            raise error
        return "done"

    return action


def test_the_result_of_the_action_is_returned(clock: Clock) -> None:
    assert with_retries(failing(), what="reading x", patience_s=1.0) == "done"
    assert clock.pauses == []


def test_passing_faults_are_repeated_with_growing_pauses(clock: Clock) -> None:
    action = failing(*[ConnectionResetError("reset")] * 8)
    assert with_retries(action, what="reading x", patience_s=60.0) == "done"
    assert len(clock.pauses) == 8
    for number, pause in enumerate(clock.pauses):
        longest = min(0.1 * 2**number, 5.0)
        assert longest / 2 <= pause <= longest


def test_patience_ends_with_what_happened_and_what_to_do(clock: Clock) -> None:
    action = failing(*[TimeoutError("no reply")] * 100)
    with pytest.raises(StorageError, match=r"reading x failed for 7 s.*no reply.*run the same"):
        with_retries(action, what="reading x", patience_s=7.0)
    assert 3.0 < clock.now_s <= 7.0


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x")])
def test_answers_are_passed_on_at_once(clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error)):
        with_retries(failing(error), what="reading x", patience_s=60.0)
    assert clock.pauses == []


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_a_failed_precondition_means_that_the_object_exists(clock: Clock, code: str) -> None:
    with pytest.raises(FileExistsError):
        with_retries(failing(wrapped(CodedError(code))), what="writing x", patience_s=60.0)
    assert clock.pauses == []


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "SlowDown", "InternalError", "503"])
def test_a_passing_s3_error_is_repeated(clock: Clock, code: str) -> None:
    assert with_retries(failing(CodedError(code)), what="writing x", patience_s=60.0) == "done"
    assert len(clock.pauses) == 1


@pytest.mark.parametrize(
    "number", [n for n, fault in NUMBERS.items() if not fault.passes and not fault.refused]
)
def test_a_fault_that_waiting_does_not_mend_is_final(clock: Clock, number: int) -> None:
    error = OSError(number, os.strerror(number))
    with pytest.raises(NUMBERS[number].kind) as caught:
        with_retries(failing(error), what="writing x", patience_s=60.0)
    assert NUMBERS[number].reason in str(caught.value)
    assert "writing x" in str(caught.value)
    assert caught.value.__cause__ is error
    assert clock.pauses == []


@pytest.mark.parametrize("code", ["InvalidBucketName", "PermanentRedirect"])
def test_a_refusal_of_the_request_itself_is_final(clock: Clock, code: str) -> None:
    with pytest.raises(StorageError, match=f"will not accept it .*{code}"):
        with_retries(failing(CodedError(code)), what="writing x", patience_s=60.0)
    assert clock.pauses == []


@pytest.mark.parametrize(
    "error", [PermissionError("Access Denied"), PermissionError(errno.EACCES, "denied")]
)
def test_a_missing_permission_is_final_and_says_what_to_check(
    clock: Clock, error: Exception
) -> None:
    with pytest.raises(StorageError, match=r"was refused.*AWS_ACCESS_KEY_ID"):
        with_retries(failing(error), what="writing x", patience_s=60.0)
    assert clock.pauses == []


def test_an_interrupt_is_not_held_back(clock: Clock) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_retries(interrupted, what="reading x", patience_s=60.0)
    assert clock.pauses == []


def test_the_s3_code_is_found_behind_a_translated_error() -> None:
    assert s3_code(CodedError("NoSuchKey")) == "NoSuchKey"
    assert s3_code(wrapped(CodedError("NoSuchKey"))) == "NoSuchKey"
    assert s3_code(OSError("plain")) == ""


def wrapped(cause: Exception) -> Exception:
    error = OSError(errno.EINVAL, "translated")
    error.__cause__ = cause
    return error
