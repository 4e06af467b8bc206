"""From TOML text and overrides to a tree of plain values. Pure.

Promises: whatever the text is, a tree of bounded size or one `ConfigError`. What no key may hold
is refused here: numbers beyond 64 bits, characters that are none, text without end.
"""

import tomllib
from collections.abc import Iterator
from typing import Any

from schemas.errors import ConfigError
from schemas.foreign import printable, shown

MAX_BYTES = 256 << 10
"""Most bytes of a configuration: a hundred times what the longest example has."""

MAX_TEXT = 16384
"""Most characters of a text in it."""

MAX_DEPTH = 8
"""Most tables and lists inside each other; a run needs three."""

MAX_DOTS = 500
"""Most full stops of a line: a dotted key takes time by the cube of its parts."""

WHOLE = range(-(2**63), 2**63)

BYTE_ORDER_MARK = "\ufeff"


def decoded(data: bytes, *, where: str) -> str:
    """Return the text of a configuration's bytes.

    Raises:
        ConfigError: it is too long, or no UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the configuration {where} has more than {MAX_BYTES >> 10} KiB: it is another file"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(
            f"the configuration {where} is not text in UTF-8 but in UTF-16; save it anew"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the configuration {where} is not text in UTF-8: {error.reason} at byte "
            f"{error.start + 1}"
        ) from error
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def parse_tree(text: str, *, where: str) -> dict[str, Any]:
    """Return the tables of TOML text.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        return _loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {printable(str(error))}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is not valid TOML: {_too_much(error)}") from error


def override(tree: dict[str, Any], item: str) -> None:
    """Replace a key of a tree by a `section.key=value` item; its value is never repeated.

    Raises:
        ConfigError: the item is malformed, or leads through a value.
    """
    key, separator, text = item.partition("=")
    parts = _key_parts(key.strip())
    if not separator or len(parts) < 2:
        raise ConfigError(
            f"--set takes section.key=value, found {shown(key)} "
            f"{'before' if separator else 'without'} an equals sign"
        )
    table = tree
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {shown(key)}: {shown(part)} is a value, not a section")
    table[parts[-1]] = _value(text.strip(), key)


def _key_parts(key: str) -> list[str]:
    """Return the parts of a dotted key, some of them maybe in quotes; none where it is no key."""
    if not key or "\n" in key or len(key) > MAX_TEXT:
        return []
    if '"' not in key and "'" not in key:
        parts = key.split(".")
        return parts if all(parts) and len(parts) <= MAX_DEPTH else []
    try:
        table: Any = _loads(f"{key} = 0")
    except (RecursionError, ValueError):
        return []
    parts = []
    while isinstance(table, dict) and len(table) == 1:
        [(part, table)] = table.items()
        parts.append(part)
    return parts if table == 0 else []


def _value(text: str, key: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"--set {shown(key)}: the value has more than {MAX_BYTES >> 10} KiB")
    try:
        found = _loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"--set {shown(key)}: {_too_much(error)}") from error
    if list(found) != ["v"]:
        raise ConfigError(f"--set {shown(key)}: the text after the equals sign is several values")
    return found["v"]


def _loads(text: str) -> dict[str, Any]:
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise RecursionError  # which is where it would end, after hours
    return tomllib.loads(text)


def _too_much(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "tables or lists are nested too deeply"
    return "a number has thousands of digits" if "digits" in str(error) else printable(str(error))


def impossible(value: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """Yield what is wrong with values that no key may have, whatever it is."""
    if depth > MAX_DEPTH:
        yield f"{key}: tables or lists are nested too deeply"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from impossible(item, f"{key}.{dotted(name)}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from impossible(item, f"{key}.{index}", depth + 1)
    elif isinstance(value, str):
        yield from _bad_text(value, key)
    elif isinstance(value, int) and value not in WHOLE:
        yield f"{key}: expected a number of at most 64 bits (found {shown(value)})"


def _bad_text(value: str, key: str) -> Iterator[str]:
    if len(value) > MAX_TEXT:
        yield f"{key}: expected a text of at most {MAX_TEXT} characters (found {len(value)})"
    if any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{key}: expected text, and it has bytes that are no character ({shown(value)})"


def dotted(part: object) -> str:
    """Return a part of a key as messages show it: short and on one line."""
    text = printable(str(part))
    return text if len(text) <= 64 else f"{text[:64]}…"
