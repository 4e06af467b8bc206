"""Inputs that nobody would write: random JSON, and bytes of valid files changed at random. Pure."""

from collections.abc import Callable
from random import Random
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x5B, 0x7B, 0x0A, 0xED)
"""Bytes at which formats turn: ends of ranges, quotes, brackets, half a surrogate."""

TOKENS = (
    *(b"NaN", b"-Infinity", b"1e400", b"-0", b"1e-400", b"9" * 30, b"null", b"[]", b"{}", b'""'),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"[" * 2000,
        b"9" * 5000,
        b"true",
        b"1979-05-27",
    ),
)
"""Pieces of text at which parsers turn."""

TEXTS = ("", "a", "é", "\0", "\ud800", "\u202e", "𝄞", "1", "null", "x" * 300)

NAMES = ("text", "00001", "ab" * 16, "ab" * 32, f"data/{'ab' * 32}.parquet", "hf", "main")
"""Texts of the forms that records have."""

NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)


def mutated(data: bytes, random: Random) -> bytes:
    """Return bytes with a few changes: bits, runs, cuts, repetitions, tokens of text."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        if not changed:
            return random.randbytes(random.randrange(20))
        random.choice(_CHANGES)(changed, random)
    return bytes(changed)


def _flip(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _odd_byte(data: bytearray, random: Random) -> None:
    data[random.randrange(len(data))] = random.choice(ODD_BYTES)


def _run(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data))
    stop = min(len(data), start + random.randrange(1, 9))
    data[start:stop] = random.randbytes(stop - start)


def _cut(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data))
    del data[start : start + random.randint(1, 1 + len(data) // random.choice((1, 4, 50)))]


def _repeat(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data))
    piece = data[start : start + random.randrange(1, 60)]
    place = random.randrange(len(data) + 1)
    data[place:place] = piece * random.choice((1, 1, 30))


def _token(data: bytearray, random: Random) -> None:
    place = random.randrange(len(data) + 1)
    stop = place + random.choice((0, 1, 5))
    data[place:stop] = random.choice(TOKENS)


_CHANGES: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip, _odd_byte, _run, _cut, _repeat, _token),
)


def any_json(random: Random, depth: int = 3) -> Any:
    """Return a random JSON value, of the kinds that Python's parser gives."""
    kind = random.randrange(7 if depth else 5)
    if kind < 2:
        return random.choice(TEXTS)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind == 4:
        return random.choice((None, True, False))
    parts = [any_json(random, depth - 1) for _ in range(random.randrange(4))]
    return parts if kind == 5 else {random.choice(TEXTS): part for part in parts}


def any_value(hint: Any, random: Random) -> Any:
    """Return a random JSON value that a field with this type may have."""
    arguments = get_args(hint)
    if NoneType in arguments:
        return None if random.random() < 0.3 else any_value(arguments[0], random)
    if get_origin(hint) is tuple:
        return [any_value(arguments[0], random) for _ in range(random.randrange(3))]
    if get_origin(hint) is dict:
        return {str(n): any_value(arguments[1], random) for n in range(random.randrange(3))}
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return any_object(hint, random)
    simple = {str: random.choice(NAMES), int: random.randrange(9), float: 0.25, bool: True}
    return simple.get(hint, {"k": [1, None]})


def any_object(kind: type[BaseModel], random: Random) -> dict[str, Any]:
    """Return a random JSON object that is one of a kind, or nearly."""
    hints = {name: field.annotation for name, field in kind.model_fields.items()}
    found = {
        name: any_value(hint, random) for name, hint in hints.items() if name != "schema_version"
    }
    if random.random() < 0.3:
        found[random.choice([*found, "schema_version", "else"])] = any_json(random)
    return found
