"""The border to the libraries that load models: whatever they raise becomes an error of ours.

Promises: a full memory and a full disk stay what they are; all else says which files, and the
library's own reason as one bounded, printable line. Keeps bars and tables off the screen. Torch is
imported inside functions only.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.store.disk.scratch import disk_fault, full_disk
from schemas.errors import CapacityError, ConfigError, OpdError

REASON_CHARS = 300

FULL = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
"""What libraries say when the memory of a GPU or of the machine is full."""

PANIC = "PanicException"
"""What a bug in a library in Rust ends in; it is no `Exception`."""

UNNAMED = (KeyError, AttributeError, IndexError, TypeError, AssertionError)
"""Exceptions whose text says little without their name."""

OWN_CODE = "trust_remote_code"


@contextmanager
def explained(
    what: str, *, blame: type[OpdError] = ConfigError, advice: str = ""
) -> Iterator[None]:
    """Turn what libraries raise inside a block into errors that say who must act.

    Args:
        what: what cannot be done, such as `cannot load the model x`.
        blame: the error where neither memory nor disk is full.
        advice: what to do then.
    """
    try:
        yield
    except OpdError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise _own(error, what, blame, advice) from error


def reason_of(error: BaseException, *, most: int = REASON_CHARS) -> str:
    """Return an exception's text as one printable line.

    Args:
        error: the exception.
        most: characters; where there is room for more than the first line, others follow it.
    """
    lines = [line.strip() for line in str(error)[: 4 * most].splitlines() if line.strip()]
    first = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    text = " ".join(lines if most > REASON_CHARS else lines[:first])
    if isinstance(error, UNNAMED) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else f"{text[:most]}…"


def is_full(error: BaseException) -> bool:
    """Return whether an exception of a library says that memory is full."""
    words, named = str(error).lower(), type(error).__name__
    full = isinstance(error, MemoryError) or named == "OutOfMemoryError"
    return full or any(phrase in words for phrase in FULL)


def _own(error: BaseException, what: str, blame: type[OpdError], advice: str) -> OpdError:
    reason = reason_of(error)
    fault = disk_fault(error)
    if fault is not None:
        return full_disk(fault, error)
    if is_full(error):
        return CapacityError(
            f"{what}: it does not fit the memory ({reason}). Free memory, or take a smaller model"
        )
    if OWN_CODE in str(error).lower():
        advice = (
            "It comes with Python code of its own: read that code, then set trust_remote_code = "
            "true in the model's section"
        )
    return blame(f"{what}: {reason}" + (f". {advice}" if advice else ""))


def settle_libraries() -> None:
    """Keep transformers' bars and DeepSpeed's guess at the accelerator off the screen.

    To be called before a model class is imported: that imports accelerate, and so DeepSpeed.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    quieten: Any = disable_progress_bar
    quieten()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep transformers' warnings off the screen for a block, such as its tables of names."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
