"""Markdown and YAML of a card: the one door through which anything gets into it. Pure.

Promises: whatever a text holds, a reader sees it as text: no markup, no link, no HTML, no key of
the header, no character that moves others or is not seen; secrets of URLs are left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.foreign import is_control, printable, without_secrets

MEANT = re.compile(r"[\\`*_{}\[\]<>#|~$&]")
"""Characters that mean something in Markdown, in a table or in a formula."""

SCHEMES = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp):|\bwww\.")
"""Beginnings of what renderers make links of by themselves."""


class Markdown(str):
    """Text that is Markdown already: made by this module and by words of ours alone."""

    __slots__ = ()


def escaped(text: str) -> Markdown:
    """Return a text of anybody as one line of Markdown that shows it as it is."""
    if isinstance(text, Markdown):
        return text
    plain = MEANT.sub(r"\\\g<0>", _plain(text))
    return Markdown(SCHEMES.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", plain))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells that are no `Markdown` are text."""
    lines = [f"| {' | '.join(escaped(cell) for cell in line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "-|" * len(head), *lines[1:]])


def fenced(text: str, language: str = "") -> str:
    """Return a block of code whose text cannot end it."""
    inner = printable(text, lines=True)
    longest = max(map(len, re.findall(r"`+", inner)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{inner}\n{fence}"


def as_json(value: Any) -> str:
    """Return a value as JSON for a block of code, its secrets and controls left out."""
    return fenced(json.dumps(_plain_within(value), indent=2, ensure_ascii=False), "json")


def header(values: Mapping[str, Any]) -> str:
    """Return the YAML that a card begins with; JSON is YAML, and one line for each key."""
    lines = [f"{key}: {json.dumps(_plain_within(value))}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _plain(text: str) -> str:
    """Return a text without secrets, on one line."""
    kept = printable(without_secrets(text))
    return "".join(" " if is_control(c) else c for c in kept)


def _plain_within(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain_within(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_within(item) for item in value]
    return value
