"""Text of others inside our messages: of servers, graders and files. Pure.

Promises: what is shown is one line of bounded length that no terminal obeys.
"""

SHOWN = 500
"""Characters that are shown of a text."""


def shown(text: str, limit: int = SHOWN) -> str:
    """Return the beginning of a text on one line, with escapes for what cannot be printed."""
    return _printable(text[:limit]) + ("…" if len(text) > limit else "")


def shown_end(text: str, limit: int = SHOWN) -> str:
    """Return the end of a text as `shown` does its beginning."""
    return ("…" if len(text) > limit else "") + _printable(text[-limit:])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
