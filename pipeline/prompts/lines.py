"""Records of a JSONL file: one JSON value a line, however the file ends, repeats or grows.

Promises: a line is never read beyond a bound; nothing of it is dropped or changed unseen: a name
that stands twice and a number beyond float64 are no record.
"""

import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

from pipeline.prompts.files import PromptFile
from pipeline.prompts.values import BadRecord
from schemas.errors import ConfigError
from schemas.foreign import excerpt, shown

Sized = tuple[int, object, int]
"""A record's number, its value or `BadRecord`, and about how many bytes it took."""

LARGEST_RECORD = 1 << 26
"""Bytes of the longest line, and of the largest row."""

MARK = b"\xef\xbb\xbf"

FORMATS = {
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"\x1f\x8b": "compressed with gzip: let its name end in .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: let its name end in .jsonl.zst",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "compressed with bzip2: decompress it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz: decompress it, or compress it with gzip",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}
"""How files begin that are no JSONL, and what they are."""

OPENINGS = (b"[", b"{")
"""First lines of one JSON document over many lines."""


def jsonl_records(file: PromptFile) -> Iterator[Sized]:
    """Yield the records of a JSONL file; blank lines are none, but count as lines.

    Raises:
        ConfigError: the file cannot be read, or is no JSONL at all.
    """
    begun, held = False, 0
    try:
        for number, line in _bounded_lines(file):
            text = line.removeprefix(MARK) if number == 1 else line
            held += len(line)
            if text.strip():
                if not begun:
                    _check_format(file, text)
                begun = True
                yield number, _json_value(text.rstrip()), held
                held = 0
    except (EOFError, OSError, zlib.error) as error:
        words = excerpt(str(error))
        raise ConfigError(f"{file.location} cannot be read: {words}; make it again") from error


def _bounded_lines(file: PromptFile) -> Iterator[tuple[int, bytes]]:
    blank = number = 0
    with file.lines() as lines:
        while line := lines.readline(LARGEST_RECORD + 1):
            number += 1
            blank = 0 if line.strip() else blank + len(line)
            if max(len(line), blank) > LARGEST_RECORD:
                raise ConfigError(
                    f"{file.place(number)}: more than {LARGEST_RECORD} bytes without an end of a "
                    "record: expected one JSON object per line"
                )
            yield number, line


def _check_format(file: PromptFile, start: bytes) -> None:
    """Refuse a file whose first record's line shows that it is of another format."""
    found = next((words for magic, words in FORMATS.items() if start.startswith(magic)), None)
    if start.strip() in OPENINGS:
        found = "one JSON document over many lines: write each record on a line of its own"
    if found is not None:
        raise ConfigError(f"{file.location} is {found}")


def _json_value(line: bytes) -> object:
    try:
        return json.loads(line.decode(), object_pairs_hook=_object, parse_float=_float)
    except BadRecord as problem:
        return problem
    except UnicodeDecodeError as error:
        return BadRecord("not_utf8", f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        words = f"{excerpt(error.msg)} at column {error.colno}"
    except RecursionError:
        words = "it is nested too deeply"
    except ValueError:  # all that is left: digits beyond what Python turns into a number
        words = "a number has thousands of digits"
    return BadRecord("malformed_json", f"malformed JSON: {words}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRecord("repeated_name", f"{shown(twice)} stands twice in one object")
    return found


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise BadRecord("malformed_json", f"malformed JSON: {shown(digits)} is beyond any float64")
    return value
