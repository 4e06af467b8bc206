"""Text that is not ours, as messages and terminals may have it. Pure.

Owns: which characters a terminal obeys, what may be a secret, how much of a value is shown.
Promises: what comes out moves no cursor, colours nothing, starts no line, and holds no password.
"""

import re
import reprlib
import unicodedata
from typing import Any

SHOWN = 120
"""Most characters of a value that a message repeats."""

EXCERPT = 500
"""Most characters of a longer text, such as a reply or what a program printed."""

USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#@'\"]*|[^\s/@'\"]*:[^\s@'\"]*)@")
"""User and password of a URL; keys of S3 may have slashes in them."""

PARAMETERS = re.compile(r"(?<=://)([^\s?'\"]*\?)[^\s'\"]+")
"""A URL up to its parameters, which are how signed URLs carry their signature."""

KEY_SHAPES = re.compile(
    r"(?:sk-|hf_|gh[pousr]_|xox[abp]-|eyJ)\S{12,}|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9])[A-Za-z0-9/+]{40}"
)
"""What keys of well-known services look like, and 40 characters as a secret key of S3 has."""

HIDDEN = "not shown, for it may hold a secret"


def printable(text: str, *, lines: bool = False) -> str:
    """Return text in which every character that a terminal obeys is written as an escape.

    Args:
        text: of anybody.
        lines: whether line feeds and tabs stay; else they are escaped too, so that the text forges
            no line.
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(_escape(c) if is_control(c) and c not in kept else c for c in text)


def excerpt(text: str, limit: int = EXCERPT) -> str:
    """Return the beginning of a text of others on one line."""
    return printable(text[:limit]) + ("…" if len(text) > limit else "")


def excerpt_end(text: str, limit: int = EXCERPT) -> str:
    """Return the end of a text as `excerpt` does its beginning."""
    return ("…" if len(text) > limit else "") + printable(text[-limit:])


def is_control(character: str) -> bool:
    """Return whether a character is obeyed instead of shown, or is shown as nothing."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def without_secrets(text: str) -> str:
    """Return text whose URLs have lost their users, passwords and parameters."""
    if "://" not in text:
        return text
    return PARAMETERS.sub(r"\1…", USER_INFO.sub("…@", text))


def may_be_secret(text: str) -> bool:
    """Return whether a message had better not repeat a text."""
    return without_secrets(text) != text or KEY_SHAPES.fullmatch(text.strip()) is not None


def shown(value: Any) -> str:
    """Return how Python writes a value, as a message repeats it: short and without secrets.

    A large or deep value is not written whole first.
    """
    text = printable(_SHORT.repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


class _Short(reprlib.Repr):
    """Python's own notation of the beginning of a value."""

    def repr_str(self, x: str, level: int) -> str:
        """Return the beginning of a text, or that it is kept back."""
        return HIDDEN if may_be_secret(x) else repr(x[: 2 * SHOWN])

    def repr_int(self, x: int, level: int) -> str:
        """Return a number, or how long it is where nobody would read it."""
        return repr(x) if x.bit_length() <= 4096 else f"a whole number of {x.bit_length()} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Return the beginning of an object in its own order."""
        if level <= 0:
            return "{…}"
        pairs = list(x.items())[: self.maxdict]
        inner = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in pairs]
        return "{" + ", ".join([*inner, *(["…"] if len(x) > self.maxdict else [])]) + "}"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxother, _SHORT.fillvalue = 4, SHOWN, "…"
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6
