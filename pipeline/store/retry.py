"""Repetition of storage requests: what to try again, how long to wait, what to say at the end."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.store import interrupts
from pipeline.store.attempts import Pace, bounded
from pipeline.store.faults import fault_of, first_line, s3_code
from pipeline.store.interrupts import pause
from schemas.errors import OpdError, StorageError
from schemas.faults import ACCESS, MEND, NETWORK, Fault

T = TypeVar("T")

BUGS = (AttributeError, AssertionError, NameError, TypeError)
"""Exceptions that come from our own process, not from the store."""

LAST_ATTEMPT_S = 10.0
"""Seconds without a byte that an attempt is allowed although patience is nearly over."""

ENDING_S = 3.0
"""Longest patience while what is held is given back after a signal."""


def with_retries(
    action: Callable[[], T], *, what: str, patience_s: float, pace: Pace | None = None
) -> T:
    """Return what the action returns, repeating it after passing faults with growing random pauses.

    Args:
        action: one request, safe to repeat.
        what: the request in words, for the message.
        patience_s: seconds after which to give up; an attempt that gets nowhere ends then, too.
        pace: how slow an attempt may be.

    Raises:
        FileNotFoundError, FileExistsError: at once; these are answers, not faults.
        OpdError: of the class that the fault belongs to: a final one, or still failing after
            `patience_s`.
    """
    if interrupts.is_ending():
        patience_s = min(patience_s, ENDING_S)
    deadline, wait_s, pace = time.monotonic() + patience_s, 0.1, pace or Pace()
    while True:
        left_s = max(deadline - time.monotonic(), LAST_ATTEMPT_S)
        try:
            return bounded(action, replace(pace, silence_s=min(pace.silence_s, left_s)))
        except (*BUGS, OpdError):
            raise
        except Exception as error:
            fault = _fault(error, what)
            if time.monotonic() + wait_s > deadline:
                raise fault.kind(
                    f"{what} failed for {patience_s:.0f} s, last with {_words(fault, error)}. "
                    f"{fault.advice}"
                ) from error
        pause(wait_s * random.uniform(0.5, 1.0))
        wait_s = min(wait_s * 2, 5.0)


def _fault(error: Exception, what: str) -> Fault:
    """Return the passing fault that an exception is.

    Raises:
        FileNotFoundError, FileExistsError: it is an answer.
        OpdError: it is a fault that waiting does not mend.
    """
    code = s3_code(error)
    if code in ("PreconditionFailed", "412"):
        raise FileExistsError(what) from error
    if isinstance(error, FileNotFoundError | FileExistsError) and code != "NoSuchBucket":
        raise error
    fault = fault_of(error)
    if fault is None:
        refusal = Fault("the store will not accept it", MEND)
        fault = refusal if isinstance(error, ValueError) else NETWORK
    if fault.passes:
        return fault
    if fault.refused:
        words = _words(fault, error)
        advice = fault.advice if fault.advice == ACCESS else f"{fault.advice}. {ACCESS}"
        raise StorageError(f"{what} was refused: {words}. {advice}") from error
    raise fault.kind(f"{what} failed: {_words(fault, error)}. {fault.advice}") from error


def _words(fault: Fault, error: BaseException) -> str:
    return f"{fault.reason} ({first_line(error)})" if fault.reason else first_line(error)
