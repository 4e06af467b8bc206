"""Which party must act on an exception: the first row of `schemas.faults` that fits.

An exception counts together with those behind it, since libraries wrap each other's. Must not:
know what was being done; the caller says that.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from schemas.errors import OpdError
from schemas.faults import (
    ACCESS,
    BROAD,
    CLASSES,
    CODES,
    DAMAGE,
    NETWORK,
    NUMBERS,
    OTHER,
    PHRASES,
    REGION,
    WORDED,
    Fault,
)

SKEWED_S = 300.0
"""Seconds between two clocks from which on S3 refuses, a third of what Amazon allows."""


def fault_of(error: BaseException) -> Fault | None:
    """Return what an exception, or one behind it, means; None where the table does not know."""
    behind = list(_behind(error))
    for find in (_by_code, _by_class, _by_number, _by_phrase, _by_broad_class):
        for seen in behind:
            fault = find(seen)
            if fault is not None:
                return fault
    return None


def known_error(error: BaseException) -> OpdError | None:
    """Return the error of opd that an exception means, whatever was being done; None for a bug."""
    fault = fault_of(error)
    if fault is None:
        fault = next((DAMAGE[n] for e in _behind(error) for n in _names(e) if n in DAMAGE), None)
    if fault is None and isinstance(error, OSError) and error.errno:
        fault = OTHER
    if fault is None:
        return None
    words = first_line(error)
    told = f"{fault.reason} ({words})" if fault.reason else words
    return fault.kind(f"{told}. {fault.advice}")


def s3_code(error: BaseException) -> str:
    """Return the S3 error code behind an exception, or an empty string."""
    return next((code for seen in _behind(error) if (code := _code(seen))), "")


def first_line(error: BaseException) -> str:
    """Return what an exception says, with its S3 code where it does not name that, in a line."""
    code = s3_code(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{code}: {text}" if code and code not in text else text


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _by_code(error: BaseException) -> Fault | None:
    code = _code(error)
    fault = CODES.get(code)
    if code == "RequestTimeTooSkewed" or (fault is not None and fault.refused):
        fault = _skewed(error) or fault
    if fault is REGION and (region := _headers(error).get("x-amz-bucket-region")):
        return replace(REGION, advice=REGION.advice.replace("that", region, 1))
    if code and fault is None:  # the numbers and classes that s3fs makes of codes say less
        return Fault("", ACCESS, refused=True) if _is_refusal(error) else NETWORK
    return fault


def _by_number(error: BaseException) -> Fault | None:
    number = error.errno if isinstance(error, OSError) and not s3_code(error) else None
    found = WORDED.search(str(error))
    worded = int(found[1] or found[2]) if found else 0
    return NUMBERS.get(number or worded)


def _by_phrase(error: BaseException) -> Fault | None:
    text = str(error)
    return next((fault for words, fault in PHRASES.items() if words in text), None)


def _by_class(error: BaseException) -> Fault | None:
    return next((CLASSES[name] for name in _names(error) if name in CLASSES), None)


def _by_broad_class(error: BaseException) -> Fault | None:
    return next((BROAD[name] for name in _names(error) if name in BROAD), None)


def _names(error: BaseException) -> Iterator[str]:
    for kind in type(error).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    found = response.get("Error") if isinstance(response, dict) else None
    return str(found.get("Code", "")) if isinstance(found, dict) else ""


def _is_refusal(error: BaseException) -> bool:
    meta: Any = getattr(error, "response", {}).get("ResponseMetadata") or {}
    return meta.get("HTTPStatusCode") in (401, 403)


def _headers(error: BaseException) -> dict[str, str]:
    meta: Any = getattr(error, "response", {}).get("ResponseMetadata") or {}
    return {str(k).lower(): str(v) for k, v in (meta.get("HTTPHeaders") or {}).items()}


def _skewed(error: BaseException) -> Fault | None:
    """Return the fault of a clock that the server's own contradicts, or None."""
    try:
        theirs = parsedate_to_datetime(_headers(error).get("date", ""))
    except ValueError:
        theirs = None
    if theirs is None or theirs.tzinfo is None:
        if _code(error) != "RequestTimeTooSkewed":
            return None
        off = "is not the server's"
    else:
        ahead_s = (datetime.now(UTC) - theirs).total_seconds()
        if abs(ahead_s) < SKEWED_S:
            return None
        minutes = f"{abs(ahead_s) / 60:.0f} minutes"
        off = f"is {minutes} {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    return Fault(
        f"this machine's clock {off}",
        "Set the clock (with NTP: `timedatectl set-ntp true`); the credentials may well be right. "
        "Then run the same command again: nothing is half-written",
    )
