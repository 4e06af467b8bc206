"""JSON files that strangers wrote, read within bounds: size, depth, one meaning.

Promises: whatever lies at a path, reading ends soon, takes bounded memory, and runs nothing. Wider
than `schemas.strictjson`, for models rightly hold `Infinity` and lengths beyond 64 bits. Pure but
for the reading.
"""

import json
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.foreign import shown

SETTINGS_BYTES = 1 << 24
"""Largest file of settings."""

VOCABULARY_BYTES = 1 << 29
"""Largest file with a vocabulary."""

MAX_DEPTH = 64
"""Deepest nesting; models have about ten."""


class Unusable(Exception):
    """A file cannot be used; the text says why, and how it should be."""


def read_object(path: Path, *, most: int = SETTINGS_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        Unusable: it is no such file.
    """
    return parse_object(read_bytes(path, most=most))


def read_bytes(path: Path, *, most: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        Unusable: it is something else, too large, or cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("is no regular file: put the model's file there")
        if found.st_size > most:
            raise Unusable(f"has {found.st_size:,} bytes, expected at most {most:,}")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object that bytes hold.

    Raises:
        Unusable: they hold none, or one with a key twice or nested too deeply.
    """
    if not data.strip():
        raise Unusable("is empty, expected a JSON object")
    if data.startswith(b"\xef\xbb\xbf"):
        raise Unusable("begins with a byte order mark: save it as UTF-8 without one")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise Unusable(f"is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise Unusable(f"is nested too deeply, expected at most {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise Unusable(f"is not a valid JSON file: {error}") from error
    if not isinstance(value, dict):
        raise Unusable(f"holds {shown(value)}, expected a JSON object")
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return value


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, Mapping) else v for v in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise Unusable(f"is nested too deeply, expected at most {MAX_DEPTH} levels")
