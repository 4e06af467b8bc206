"""Repetition of storage requests: what to try again, how long to wait, what to say at the end."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from schemas.errors import StorageError

T = TypeVar("T")

FINAL_ERRNOS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or a limit allows",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the path is too long",
    errno.EOPNOTSUPP: "the file system has no hard links, which a safe create needs",
    errno.EPERM: "the operation is not permitted (or the file system has no hard links)",
}
"""Faults of the operating system that waiting does not mend, in words."""

BUGS = (AttributeError, AssertionError, MemoryError, NameError, TypeError)
"""Exceptions that come from our own process, not from the store."""

FINAL_CODES = ("InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed")
"""S3 error codes that waiting does not mend."""


def with_retries(action: Callable[[], T], *, what: str, patience_s: float) -> T:
    """Return what the action returns, repeating it after passing faults with growing random pauses.

    Args:
        action: one request, safe to repeat.
        what: the request in words, for the message.
        patience_s: seconds after which to give up.

    Raises:
        FileNotFoundError, FileExistsError: at once; these are answers, not faults.
        StorageError: no permission, a final fault, or still failing after `patience_s`.
    """
    deadline, pause = time.monotonic() + patience_s, 0.1
    while True:
        try:
            return action()
        except BUGS:
            raise
        except Exception as error:
            if _is_precondition(error):
                raise FileExistsError(what) from error
            if isinstance(error, FileNotFoundError | FileExistsError):
                raise
            _raise_if_final(error, what)
            if time.monotonic() + pause > deadline:
                raise StorageError(
                    f"{what} failed for {patience_s:.0f} s, last with {_words(error)}. Check that "
                    "the store is up and reachable (for s3://, AWS_ENDPOINT_URL) and run the same "
                    "command again: nothing is half-written"
                ) from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, 5.0)


def s3_code(error: BaseException) -> str:
    """Return the S3 error code behind an exception, or an empty string."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return ""


def _is_precondition(error: Exception) -> bool:
    return s3_code(error) in ("PreconditionFailed", "412")


def _raise_if_final(error: Exception, what: str) -> None:
    """Raise a StorageError for a fault that waiting does not mend."""
    reason = FINAL_ERRNOS.get(getattr(error, "errno", None) or 0)
    refused = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    if refused and not reason:
        raise StorageError(
            f"{what} was refused: {_words(error)}. Check that you may read and write there (for "
            "s3://, the credentials AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile), "
            "then run the same command again: nothing is half-written"
        ) from error
    if s3_code(error) in FINAL_CODES or isinstance(error, ValueError):
        reason = "the store will not accept it"
    if reason and not s3_code(error).startswith("5"):
        raise StorageError(
            f"{what} failed: {reason} ({_words(error)}). Fix this and re-run the same "
            "command: nothing is half-written"
        ) from error


def _words(error: BaseException) -> str:
    code = s3_code(error)
    text = str(error).strip() or type(error).__name__
    return f"{code}: {text}" if code and code not in text else text
