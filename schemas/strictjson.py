"""JSON of strangers: parsed once, strictly, within bounds. Pure.

Promises: what passes has no name twice, no NaN, no infinity, no number beyond 64 bits, is not
nested without end and is not larger than `MAX_BYTES`.
"""

import json
import math
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
"""Bytes of a JSON object at most: a manifest of 200,000 units has as many."""

MAX_DEPTH = 100
"""Brackets within brackets."""

LEAST, MOST = -(2**63), 2**64 - 1


class StrictJSONError(ValueError):
    """A text is no JSON, or more than JSON of opd may be."""


def parse_json(data: bytes) -> Any:
    """Return the value of JSON bytes.

    Raises:
        StrictJSONError: it is not JSON, is too large or too deep, has a name twice or a number that
            is none or beyond 64 bits.
    """
    if len(data) > MAX_BYTES:
        raise StrictJSONError(f"it has {len(data)} bytes, more than the {MAX_BYTES} that are read")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise StrictJSONError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"it is not JSON at character {error.pos}: {error.msg}") from error
    if _depth(data) > MAX_DEPTH and _is_deep(value):
        raise StrictJSONError("it is nested too deeply")
    return value


def _depth(data: bytes) -> int:
    """Return what no value can be nested deeper than: all brackets that open."""
    return data.count(b"[") + data.count(b"{")


def _is_deep(value: Any) -> bool:
    level, left = 0, [value]
    while left and level < MAX_DEPTH:
        inner = [one.values() if isinstance(one, dict) else one for one in left]
        left = [v for values in inner for v in values if isinstance(v, dict | list)]
        level += 1
    return bool(left)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise StrictJSONError("a name stands in it twice")
    return found


def _integer(text: str) -> int:
    number = int(text) if len(text) <= 20 else MOST + 1
    if not LEAST <= number <= MOST:
        raise StrictJSONError("it holds a number beyond 64 bits")
    return number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJSONError("it holds a number that is too large")
    return number


def _constant(text: str) -> NoReturn:
    raise StrictJSONError(f"it holds {text}, which is no number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
