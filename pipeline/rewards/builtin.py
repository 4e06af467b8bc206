"""The graders that are built in and compare a response with its reference. Pure.

Promises: texts are equal where they are after Unicode's normal form NFC and without outer white
space; numbers are equal where their values are.
"""

import unicodedata
from collections.abc import Callable, Mapping

from pipeline.rewards.choices import same_choice
from pipeline.rewards.lastnumber import last_number


def same_text(response: str, reference: str) -> float:
    """Return 1.0 where two texts are equal, else 0.0."""
    return float(_plain(response) == _plain(reference))


def same_number(response: str, reference: str) -> float:
    """Return 1.0 where the last numbers of two texts are equal, else 0.0.

    Raises:
        ValueError: the reference holds no number.
    """
    expected = last_number(reference)
    if expected is None:
        raise ValueError("the reference holds no number")
    return float(last_number(response) == expected)


COMPARISONS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": same_text,
    "last_number": same_number,
    "choice": same_choice,
}
"""Name → comparison of a response with its reference."""


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
