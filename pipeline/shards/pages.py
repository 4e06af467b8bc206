"""Page headers of Parquet files: what a reader is about to take memory for, without taking it.

A footer may say anything; Arrow allocates what page headers say, one page after the other. They
are small Thrift structs (compact protocol) and are read here alone. Pure.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Read = Callable[[int, int], bytes]
"""Bytes of a file: where they begin, and how many."""

HEADER_BYTES = 1 << 9
"""Bytes in which a page header nearly always ends."""

LONGEST_HEADER = 1 << 24
"""Bytes of the longest page header that Arrow reads."""

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Types of pages."""

_DETAILS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Type of a page → field of its header that says how many values it has."""

_MOST_NESTED = 16

_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 6, 7, 8, 9, 10, 12


class PageError(ValueError):
    """Page headers that no writer makes."""


class Page(NamedTuple):
    """What a page header promises."""

    kind: int
    size: int
    """Bytes of the page once it is decompressed."""
    values: int


@dataclass(frozen=True)
class Stretch:
    """Where the pages of a column chunk are."""

    start: int
    length: int
    values: int
    """Values of the chunk; a reader stops at the page that reaches them."""


def pages_of(read: Read, stretch: Stretch) -> Iterator[Page]:
    """Yield the pages of a column chunk that a reader would take.

    Raises:
        PageError: a header cannot be read, or promises what cannot be.
    """
    place, end, seen = stretch.start, stretch.start + stretch.length, 0
    while place < end and seen < stretch.values:
        fields, length = _header(read, place, end - place)
        page, compressed = _page(fields)
        place += length + compressed
        if page.kind != DICTIONARY:
            seen += page.values
        yield page
    if place > end:
        raise PageError("a page is longer than its column")
    if seen < stretch.values:
        raise PageError(f"pages hold {seen} values, their column should have {stretch.values}")


def _page(fields: dict[int, Any]) -> tuple[Page, int]:
    """Return a page and its compressed bytes."""
    try:
        kind, size, compressed = (int(fields[number]) for number in (1, 2, 3))
        values = int(fields.get(_DETAILS.get(kind, 0), {}).get(1, 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise PageError("a page header lacks its type or sizes") from error
    if min(size, compressed, values) < 0:
        raise PageError("a page header holds a negative size")
    return Page(kind, size, values), compressed


def _header(read: Read, place: int, most: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header at a place, and its length."""
    for size in (HEADER_BYTES, LONGEST_HEADER):
        data = read(place, min(size, most))
        try:
            return _struct(data, 0, _MOST_NESTED)
        except IndexError:
            continue
    raise PageError("a page header does not end")


def _struct(data: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the whole numbers and structs of a Thrift struct by field, and where it ends."""
    if not depth:
        raise PageError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[place]:
        place += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, place = _number(data, place)
        value, place = _value(data, place, kind, depth)
        if value is not None:
            fields[number] = value
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a field's value, or None where it is of no interest, and where it ends."""
    if kind in (_TRUE, _FALSE):
        return None, place
    if _BYTE < kind <= _I64:
        return _number(data, place)
    if kind == _STRUCT:
        return _struct(data, place, depth - 1)
    return None, _skipped(data, place, kind, depth)


def _skipped(data: bytes, place: int, kind: int, depth: int) -> int:
    """Return where a value ends that is of no interest."""
    if kind in (_BYTE, _DOUBLE):
        place += 1 if kind == _BYTE else 8
    elif kind == _BINARY:
        length, place = _varint(data, place)
        place += length
    elif kind in (_LIST, _SET):
        place = _list_end(data, place, depth)
    else:
        raise PageError(f"a page header has a field of type {kind}")
    if place > len(data):
        raise IndexError
    return place


def _list_end(data: bytes, place: int, depth: int) -> int:
    kind, count = data[place] & 15, data[place] >> 4
    place += 1
    if count == 15:
        count, place = _varint(data, place)
    for _ in range(count):
        if kind in (_TRUE, _FALSE):
            place += 1
        else:
            _, place = _value(data, place, kind, depth - 1)
    return place


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return a signed number and where it ends."""
    found, place = _varint(data, place)
    return (found >> 1) ^ -(found & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[place]
        place += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, place
        shift += 7
        if shift > 63:
            raise PageError("a number of a page header does not end")
