"""Foreign text and values in messages: printable, on one line and short. Pure."""

import reprlib

LONGEST_TEXT = 300
"""Characters of a foreign text that a message holds."""

LONGEST_VALUE = 60
"""Characters of a foreign value that a message holds."""


def readable(text: str, *, most: int = LONGEST_TEXT) -> str:
    """Return the beginning of a text, with what no terminal should get written as escapes."""
    cut = text[:most]
    shown = "".join(
        letter if letter.isprintable() else ascii(letter).strip("'")
        for letter in " ".join(cut.splitlines())
    )
    return shown if len(text) <= most else f"{shown}…"


def shown(value: object) -> str:
    """Return how Python writes a value, cut; a large or deep one is not written whole first."""
    text = _SHORT.repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


class _Short(reprlib.Repr):
    """Python's own notation of the beginning of a value."""

    def repr_str(self, x: str, level: int) -> str:
        """Return the beginning of a text as Python writes it."""
        return repr(x[: self.maxstring])

    def repr_int(self, x: int, level: int) -> str:
        """Return a number, or how long it is where Python refuses to write it."""
        return repr(x) if x.bit_length() < self.maxlong else f"a number of {x.bit_length()} bits"

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """Return the beginning of an object in its own order."""
        if level <= 0:
            return "{…}"
        pairs = list(x.items())[: self.maxdict]
        inner = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in pairs]
        return "{" + ", ".join([*inner, *(["…"] if len(x) > self.maxdict else [])]) + "}"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = LONGEST_VALUE + 1
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = LONGEST_VALUE
_SHORT.maxlong = 10_000
_SHORT.maxlevel = 6
