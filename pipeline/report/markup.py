"""Text as HTML and as JSON inside of it: the one door through which anything gets onto the page.

Promises: whatever a text holds, a browser shows it as text: no markup, no script, no character that
moves others or is not seen. Pure.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from schemas.foreign import printable

VOID = frozenset({"meta", "link", "input", "br"})
"""Elements that have no end."""


class Html(str):
    """Text that is HTML already: made by `tag`, `raw` and `joined` alone."""

    __slots__ = ()


def plain(text: str) -> str:
    """Return a text of anybody with what is obeyed or not seen written as escapes."""
    return printable(text, lines=True)


def tag(name: str, /, *children: str | None, **attributes: str | bool | None) -> Html:
    """Return an element; children that are no `Html` are text.

    Args:
        name: of the element.
        children: what stands in it; None is left out.
        attributes: `class_` is `class`, `data_x` is `data-x`; None and False are left out.
    """
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inner = joined(*children)
    return Html(f"<{name}{words}>" + ("" if name in VOID else f"{inner}</{name}>"))


def joined(*children: str | None) -> Html:
    """Return elements and texts one after the other."""
    return Html("".join(escaped(child) for child in children if child is not None))


def raw(text: str) -> Html:
    """Return text of ours, or of the library that draws charts, which is HTML as it stands."""
    return Html(text)


def data_script(name: str, value: Any) -> Html:
    """Return JSON in a script that no browser runs; its texts are plain, and close no element."""
    words = json.dumps(_plain_within(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        words = words.replace(character, f"\\u{ord(character):04x}")
    return tag("script", raw(words), type="application/json", id=name)


def escaped(text: str) -> str:
    """Return text as it stands in an element or between the quotes of an attribute."""
    return text if isinstance(text, Html) else escape(plain(text), quote=True)


def _plain_within(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(str(key)): _plain_within(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_within(item) for item in value]
    return value
