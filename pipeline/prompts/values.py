"""Values of a record as strangers write them: what is text, what JSON cannot hold, what is wrong.

Pure.
"""

from dataclasses import dataclass

from schemas.foreign import shown

RAW_BYTES = range(0xDC80, 0xDD00)
"""What stands in a text for bytes that are no UTF-8: Python's `surrogateescape`."""


class BadRecord(Exception):
    """A record cannot be used: `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, text: str) -> None:
        """Name the reason and say what was found and expected."""
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Foreign:
    """A value that JSON has no type for, such as a date: no text of a prompt, but free metadata."""

    kind: str
    text: str

    def __str__(self) -> str:
        """Return the value's text."""
        return self.text

    def __repr__(self) -> str:
        """Return type and text, for messages."""
        return f"{self.kind} {self.text}"


def encodable(text: str, name: str) -> str:
    """Return a text that UTF-8 can hold.

    Raises:
        BadRecord: it holds raw bytes, or half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place, code = error.start, ord(text[error.start])
        if code in RAW_BYTES:
            found = f"not UTF-8: byte 0x{code & 255:02x} at character {place + 1} of {name!r}"
            raise BadRecord("not_utf8", found) from error
        found = f"{name!r} holds half a surrogate pair, \\u{code:04x}, at character {place + 1}"
        raise BadRecord("not_utf8", found) from error
    return text


def wrong_type(name: str, expected: str, value: object) -> BadRecord:
    """Return that a column holds a value of another type."""
    return BadRecord("wrong_type", f"expected {expected} in {name!r}, found {shown(value)}")
