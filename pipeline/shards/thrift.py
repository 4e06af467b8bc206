"""Structs of Thrift's compact protocol, in which Parquet writes its footer and page headers. Pure.

Promises: any bytes are a struct or a `PageError`; no list is longer than the bytes that hold it.
"""

from typing import Any

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
"""Types of fields that are returned; others are skipped."""

_TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _SET = 1, 2, 3, 4, 7, 10

MOST_NESTED = 16

Fields = dict[tuple[int, int], Any]
"""Values of a struct by their number and type, as a reader looks them up."""


class PageError(ValueError):
    """Parquet metadata that no writer makes."""


def read_struct(data: bytes, place: int = 0, *, depth: int = MOST_NESTED) -> tuple[Fields, int]:
    """Return the fields of the struct at a place, and where it ends.

    Raises:
        PageError: it cannot be one.
        IndexError: the bytes end before it does.
    """
    if not depth:
        raise PageError("Parquet metadata is nested too deeply")
    fields: Fields = {}
    number = 0
    while head := data[place]:
        place += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, place = _number(data, place)
        if kind not in (_TRUE, _FALSE):  # these have no value beside their type
            fields[number, kind], place = _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value and where it ends."""
    if kind in (_I16, I32, I64):
        return _number(data, place)
    if kind == STRUCT:
        return read_struct(data, place, depth=depth - 1)
    if kind == BINARY:
        length, place = _varint(data, place)
        return data[place : place + length], _within(data, place + length)
    if kind in (LIST, _SET):
        return _list(data, place, depth)
    if kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
        return None, _within(data, place + (8 if kind == _DOUBLE else 1))
    raise PageError(f"Parquet metadata has a field of type {kind}")


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    kind, count = data[place] & 15, data[place] >> 4
    place += 1
    if count == 15:
        count, place = _varint(data, place)
    _within(data, place + count)  # nothing takes less than a byte
    found = []
    for _ in range(count):
        value, place = _value(data, place, kind, depth - 1)
        found.append(value)
    return found, place


def _within(data: bytes, place: int) -> int:
    if place > len(data):
        raise IndexError
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
            raise PageError("a number of Parquet metadata does not end")
