"""How much memory a Parquet file asks for, known and bounded before a page of it is decoded.

Promises: counts what page headers say, never what a footer claims alone; a file that would grow
beyond all measure is refused. Must not: decode a page.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.shards.pages import DICTIONARY, Page, PageError, Read, Stretch, pages_of

VALUE_BYTES = 8
"""Bytes that a value takes beside its text: its number, its levels."""

GROWTH = 256
"""A file may take so many times its own bytes in memory; zstd's best on real text is about 30."""

SMALL = 1 << 28
"""Bytes that any file may take, however small it is."""


class ExtentError(PageError):
    """A file that would take far more memory than files of its size hold."""


@dataclass(frozen=True)
class Extent:
    """What the decoded values of some columns take."""

    rows: int = 0
    bytes: int = 0
    largest_page: int = 0
    """Bytes of the largest page of columns whose values may repeat what others begin with."""


def checked_extent(
    metadata: Any,
    read: Read,
    *,
    size: int,
    columns: Iterable[str] | None = None,
    groups: Iterable[int] | None = None,
    shared: bool = False,
) -> Extent:
    """Return what decoding a file takes, once that is known to be bounded.

    Args:
        metadata: the file's footer, a `pyarrow.parquet.FileMetaData`.
        read: gives bytes of the file.
        size: bytes of the file.
        columns: the only ones that are decoded; default all.
        groups: the only row groups that are decoded; default all.
        shared: whether texts of a dictionary are kept once, not once for each row.

    Raises:
        PageError: page headers cannot be read or contradict the footer.
        ExtentError: it takes too much.
    """
    wanted = None if columns is None else set(columns)
    chosen = range(metadata.num_row_groups) if groups is None else groups
    most, taken, largest, rows = max(SMALL, GROWTH * size), 0, 0, 0
    for group in chosen:
        row_group = metadata.row_group(group)
        rows += row_group.num_rows
        for chunk, length in _chunks(metadata, row_group, wanted):
            for page in _pages(chunk, read, size, row_group.num_rows):
                taken += _page_bytes(page, chunk, length, shared)
                if "DELTA" in "".join(chunk.encodings):
                    largest = max(largest, page.size)
                if taken > most:
                    raise ExtentError(
                        f"its {size} bytes would become more than {most} in memory: no file of "
                        "real texts or numbers does"
                    )
    return Extent(rows, taken, largest)


def _chunks(metadata: Any, row_group: Any, wanted: set[str] | None) -> Iterator[tuple[Any, int]]:
    """Yield the column chunks of a row group with the bytes of a value of fixed length, or 0."""
    for index in range(row_group.num_columns):
        chunk = row_group.column(index)
        if wanted is None or chunk.path_in_schema.partition(".")[0] in wanted:
            fixed = chunk.physical_type == "FIXED_LEN_BYTE_ARRAY"
            yield chunk, metadata.schema.column(index).length if fixed else 0


def _pages(chunk: Any, read: Read, size: int, rows: int) -> Iterator[Page]:
    start, length = chunk.data_page_offset, chunk.total_compressed_size
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    if min(start, length, rows) < 0 or start + length > size:
        raise PageError("a column lies outside the file")
    if chunk.num_values < rows:
        raise PageError(f"a column has {chunk.num_values} values for {rows} rows")
    return pages_of(read, Stretch(start, length, chunk.num_values))


def _page_bytes(page: Page, chunk: Any, length: int, shared: bool) -> int:
    """Return what a page takes; a dictionary of texts may be repeated by every value."""
    text = chunk.physical_type == "BYTE_ARRAY"
    copies = chunk.num_values if page.kind == DICTIONARY and text and not shared else 1
    return page.size * max(copies, 1) + page.values * (VALUE_BYTES + length)
