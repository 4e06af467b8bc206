"""Where the pages of a Parquet file are and what they promise, without decoding one. Pure.

A footer may say anything; Arrow allocates what page headers say, one page after the other. Both
are read here by themselves: pyarrow ends the process where it is asked for a column's metadata
and these contradict themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.shards.thrift import I32, I64, LIST, STRUCT, Fields, PageError, read_struct

Read = Callable[[int, int], bytes]
"""Bytes of a file: where they begin, and how many."""

HEADER_BYTES, LONGEST_HEADER = 1 << 9, 1 << 24
"""Bytes in which a page header nearly always ends, and of the longest that Arrow reads."""

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Types of pages."""

_DETAILS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Type of a page → field of its header that says how many values it has."""

_DELTA_TEXTS = {6, 7}
"""Encodings of texts by their lengths, and by what each shares with the one before."""

_BYTE_ARRAY, _FIXED = 6, 7


@dataclass(frozen=True)
class Chunk:
    """A column of a row group, as its footer has it."""

    path: str
    start: int
    length: int
    """Compressed bytes."""
    values: int
    is_text: bool
    is_delta: bool
    """Whether texts may be stored as ends of others."""
    width: int = 0
    """Bytes of each value, where all have as many; 0 where not."""


class RowGroup(NamedTuple):
    """Some rows of a file."""

    rows: int
    chunks: list[Chunk]


class Page(NamedTuple):
    """What a page header promises."""

    kind: int
    size: int
    """Bytes of the page once it is decompressed."""
    values: int


def row_groups(read: Read, size: int) -> list[RowGroup]:
    """Return what the footer of a file of a size says.

    Raises:
        PageError: there is no footer, or it contradicts itself.
    """
    length = int.from_bytes(read(max(size - 8, 0), 4), "little")
    if not 0 < length <= size - 8:
        raise PageError("a footer is longer than its file")
    try:
        footer, _ = read_struct(read(size - 8 - length, length))
        leaves = [element for element in footer[2, LIST][1:] if not element.get((5, I32))]
        return [_row_group(group, leaves) for group in footer[4, LIST]]
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise PageError("a footer lacks what a reader needs") from error


def _row_group(group: Fields, leaves: list[Fields]) -> RowGroup:
    columns = [column[3, STRUCT] for column in group[1, LIST]]
    if len(columns) != len(leaves):
        raise PageError(f"a row group has {len(columns)} columns, its schema {len(leaves)}")
    chunks = [_chunk(column, leaf) for column, leaf in zip(columns, leaves, strict=True)]
    return RowGroup(group[3, I64], chunks)


def _chunk(column: Fields, leaf: Fields) -> Chunk:
    kind, start, dictionary = column[1, I32], column[9, I64], column.get((11, I64), 0)
    return Chunk(
        path=".".join(part.decode() for part in column[3, LIST]),
        start=dictionary if 0 < dictionary < start else start,
        length=column[7, I64],
        values=column[5, I64],
        is_text=kind == _BYTE_ARRAY,
        is_delta=kind == _BYTE_ARRAY and not _DELTA_TEXTS.isdisjoint(column[2, LIST]),
        width=leaf.get((2, I32), 0) if kind == _FIXED else 0,
    )


def pages_of(read: Read, chunk: Chunk) -> Iterator[Page]:
    """Yield the pages of a column chunk that a reader would take.

    Raises:
        PageError: a header cannot be read, or promises what cannot be.
    """
    place, end, seen = chunk.start, chunk.start + chunk.length, 0
    while place < end and seen < chunk.values:
        fields, length = _header(read, place, end - place)
        page, compressed = _page(fields)
        place += length + compressed
        if page.kind in (DATA, DATA_V2):
            seen += page.values
        yield page
    if place > end:
        raise PageError("a page is longer than its column")
    if seen < chunk.values:
        raise PageError(f"pages hold {seen} values, their column should have {chunk.values}")


def _page(fields: Fields) -> tuple[Page, int]:
    """Return a page and its compressed bytes."""
    try:
        kind, size, compressed = (fields[number, I32] for number in (1, 2, 3))
        details = fields[_DETAILS[kind], STRUCT] if kind in _DETAILS else {(1, I32): 0}
        values = details[1, I32]
    except KeyError as error:
        raise PageError("a page header lacks its type or sizes") from error
    if min(size, compressed, values) < 0:
        raise PageError("a page header holds a negative size")
    return Page(kind, size, values), compressed


def _header(read: Read, place: int, most: int) -> tuple[Fields, int]:
    """Return the fields of the header at a place, and its length."""
    for size in (HEADER_BYTES, LONGEST_HEADER):
        try:
            return read_struct(read(place, min(size, most)))
        except IndexError:
            continue
    raise PageError("a page header does not end")
