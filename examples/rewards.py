"""Rewards of one's own: `reward = "rewards.py:final_number"` in `[eval]` finds this file.

A reward takes the text of the response, the prompt's `reference` (None where it has none) and the
prompt's free columns. It returns a number: 1.0 for right, 0.0 for wrong, or anything between.
"""

import re
from typing import Any

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def final_number(response: str, reference: str | None, columns: dict[str, Any]) -> float:
    """Return 1.0 where the response's final number equals the reference, else 0.0.

    The final number is the one in the last box that LaTeX writes, or else the last one of the first
    paragraph: a model that goes on to write a next question must not be graded by that.
    """
    boxed = BOXED.findall(response)
    text = boxed[-1] if boxed else response.strip().split("\n\n")[0]
    found = NUMBER.findall(text)
    if reference is None or not found:
        return 0.0
    return float(abs(_value(found[-1]) - _value(reference)) < 1e-6)


def _value(number: str) -> float:
    return float(number.replace(",", ""))
