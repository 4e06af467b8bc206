"""The grader `math`: whether a response ends in the mathematics of its reference, by math-verify.

Runs in the process of a grader, as a file of its own. What cannot be read or compared in a few
seconds is wrong, whatever it is; a reference that is no mathematics is an error.
"""

import logging
import re
from typing import Any

from math_verify import parse, verify

READ_S, COMPARE_S = 3, 3
"""Whole seconds that reading an expression, and comparing two, may take."""

MOST_CHARACTERS = 20_000
"""Characters at the end of a response that are looked at: the answer stands there."""

MARKS = ("$", "\\boxed", "\\(", "\\[")
"""What a text has that says itself where its mathematics is."""

WORD = re.compile(r"[^\W\d_]{4,}")

logging.disable(logging.CRITICAL)  # the library tells of each text that it cannot read


def grade(response: str, reference: str, metadata: dict[str, Any]) -> float:
    """Return 1.0 where a response has the value of its reference, else 0.0.

    Raises:
        ValueError: the reference is no mathematics.
    """
    expected = _expected(reference)
    if not expected:
        raise ValueError(f"the reference {reference[:100]!r} is no number or LaTeX")
    found = _parsed(response[-MOST_CHARACTERS:])
    try:
        return float(verify(expected, found, timeout_seconds=COMPARE_S))
    except Exception:  # of sympy, on whatever a model wrote
        return 0.0


def _expected(reference: str) -> list[Any]:
    if WORD.search(reference) and not any(mark in reference for mark in (*MARKS, "\\")):
        return []  # the parser would take it for a product of letters
    whole = reference if any(mark in reference for mark in MARKS) else f"${reference}$"
    return _parsed(whole) or _parsed(reference)


def _parsed(text: str) -> list[Any]:
    try:
        found = parse(text, fallback_mode="no_fallback", parsing_timeout=READ_S)
    except Exception:  # of its parser, on whatever a model wrote
        return []
    return list(found)
