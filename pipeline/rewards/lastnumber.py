"""The last number of a text, by its exact value. Pure.

Promises: time and memory grow with the text alone, whatever its numbers are; two numbers are equal
where their values are, to the last digit. docs/data.md says what counts as a number.
"""

import re
from collections import deque
from math import gcd

Number = tuple[bool, str, int | str]
"""Whether it is negative, its digits without zeros at either end, and the exponent of the last one;
a fraction that has no end has both its sides for digits."""

NUMBER = re.compile(
    r"""
    (?: (?<![0-9.]) (?P<sign> [-+\u2212] ) )?
    (?:
        (?<![0-9/.]) (?P<over> [0-9]{1,100} ) / (?P<under> [0-9]{1,100} ) (?! [0-9/] | \.[0-9] )
    |
        (?P<digits>
            (?<![0-9]) [0-9]{1,3} (?P<group> [,_\u00a0\u2009\u202f] ) [0-9]{3}
            (?: (?P=group) [0-9]{3} )* (?![0-9]) (?: \.[0-9]+ )?
        |   [0-9]+ (?: \.[0-9]+ )?
        |   (?<![0-9]) \.[0-9]+
        )
        (?: [eE] (?P<power> [-+\u2212]? [0-9]+ ) )?
    )
    """,
    re.VERBOSE,
)

WITHOUT_GROUPS = str.maketrans("", "", ",_\u00a0\u2009\u202f")

PLAIN_MINUS = str.maketrans("\u2212", "-", "+")

LONGEST_POWER = 18
"""Digits of an exponent that is reckoned with; longer ones are compared as they are written."""


def last_number(text: str) -> Number | None:
    """Return the value of a text's last number, or None where it holds none."""
    found = deque(NUMBER.finditer(text), maxlen=1)
    return _value(found[0]) if found else None


def _value(match: re.Match[str]) -> Number:
    negative = (match["sign"] or "+") != "+"
    if match["over"] is None:
        return _decimal(negative, match["digits"].translate(WITHOUT_GROUPS), match["power"] or "0")
    over, under = int(match["over"]), int(match["under"])
    if under == 0:
        return _decimal(False, match["under"], "0")
    over, under = over // gcd(over, under), under // gcd(over, under)
    places = _places(under)
    if places is None:
        return negative, f"{over}/{under}", 0
    return _decimal(negative, str(over * 10**places // under), str(-places))


def _places(under: int) -> int | None:
    """Return the decimal places that a reduced fraction needs, or None where they never end."""
    counts = []
    for factor in (2, 5):
        count = 0
        while under % factor == 0:
            under, count = under // factor, count + 1
        counts.append(count)
    return max(counts) if under == 1 else None


def _decimal(negative: bool, digits: str, power: str) -> Number:
    whole, _, part = digits.partition(".")
    begun = (whole + part).lstrip("0")
    kept = begun.rstrip("0")
    if not kept:
        return False, "", 0
    exponent = len(begun) - len(kept) - len(part)
    power = power.translate(PLAIN_MINUS)
    size = power.lstrip("-").lstrip("0") or "0"
    if len(size) > LONGEST_POWER:
        return negative, kept, f"{exponent}e{power[: power.startswith('-')]}{size}"
    return negative, kept, exponent + (-int(size) if power.startswith("-") else int(size))
