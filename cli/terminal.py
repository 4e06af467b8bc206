"""The only door to the terminal: everything that people or programs read goes through it.

Promises: no text of others moves the cursor, colours, forges a line or shows a password; what the
terminal's encoding lacks is written as an escape, never an error.
Must not: know what is said.
"""

import io
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from schemas.foreign import printable, without_secrets

WIDTH = 140
"""Columns of a table where no terminal says how many it has."""


def prepare_streams() -> None:
    """Let stdout and stderr escape the characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # it is closed, or its buffer cannot be laid aside
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")


def say(*lines: str) -> None:
    """Print lines to stdout; a line feed inside one of them is escaped."""
    _write(sys.stdout, [_line(line) for line in lines])


def warn(*lines: str) -> None:
    """Print lines to stderr; a line feed inside one of them is escaped."""
    _write(sys.stderr, [_line(line) for line in lines])


def fail(message: str) -> None:
    """Print why a command ends to stderr; only its first line begins at the margin."""
    first, *others = message.split("\n")
    kept = [line if not line or line.startswith(" ") else f"  {line}" for line in others]
    warn(f"opd: {first}", *kept)


def say_json(value: Any, *, indent: int | None = None) -> str:
    """Print a value as JSON to stdout, and return the text."""
    text = as_json(value, indent=indent)
    _write(sys.stdout, [text])
    return text


def warn_json(value: Any) -> None:
    """Print a value as a line of JSON to stderr."""
    _write(sys.stderr, [as_json(value)])


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in ASCII, without secrets: its own escapes make it printable."""
    return json.dumps(without_secrets_in(value), indent=indent)


def without_secrets_in(value: Any) -> Any:
    """Return a value of JSON whose texts have lost the users and passwords of URLs."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {without_secrets_in(key): without_secrets_in(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets_in(item) for item in value]
    return value


def cell(text: str, style: str = "") -> Text:
    """Return text for a table or a bar: printable, and never read as markup."""
    return Text(_line(text), style=style)


def console(*, error: bool = False, width: int | None = None) -> Console:
    """Return where bars and tables are drawn; what is put into it are `cell`s."""
    stream = sys.stderr if error else sys.stdout
    fixed = None if stream.isatty() else width
    return Console(file=stream, width=fixed, markup=False, highlight=False, emoji=False)


def clear_screen() -> None:
    """Let what follows be drawn over what was there, where stdout is a terminal."""
    console().clear()


def say_table(
    titles: Sequence[str],
    cells: Sequence[Sequence[str | Text]],
    *,
    left: Sequence[int] = (0,),
    width: int = WIDTH,
    wrap_titles: bool = False,
) -> None:
    """Print rows of text under titles.

    Args:
        titles: of the columns.
        cells: rows of text.
        left: columns that begin at their left.
        width: columns of the table where no terminal says how many it has.
        wrap_titles: whether a column is as wide as the longest word of its title, at least.
    """
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(titles):
        least = max(map(len, name.split()), default=0) if wrap_titles else None
        side: JustifyMethod = "left" if index in left else "right"
        table.add_column(cell(name), justify=side, overflow="fold", min_width=least)
    for row in cells:
        table.add_row(*(one if isinstance(one, Text) else cell(one) for one in row))
    console(width=width).print(table)


def _line(text: str) -> str:
    return printable(without_secrets(text))


def _write(stream: TextIO, lines: Sequence[str]) -> None:
    print("\n".join(lines), file=stream, flush=True)
