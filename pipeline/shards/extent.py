"""How much memory a Parquet file asks for, known and bounded before a page of it is decoded.

Promises: counts what page headers say, never what a footer claims alone; a file that would grow
beyond all measure is refused. Must not: decode a page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.shards.pages import DICTIONARY, Chunk, Page, Read, RowGroup, pages_of
from pipeline.shards.thrift import PageError

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
    groups: Sequence[RowGroup],
    read: Read,
    *,
    size: int,
    columns: Iterable[str] | None = None,
    shared: bool = False,
) -> Extent:
    """Return what decoding row groups of a file takes, once that is known to be bounded.

    Args:
        groups: those that are decoded, of the file's footer.
        read: gives bytes of the file.
        size: bytes of the file.
        columns: the only ones that are decoded; default all.
        shared: whether texts of a dictionary are kept once, not once for each row.

    Raises:
        PageError: page headers cannot be read or contradict the footer.
        ExtentError: it takes too much.
    """
    wanted = None if columns is None else set(columns)
    most, taken, largest = max(SMALL, GROWTH * size), 0, 0
    for rows, chunks in groups:
        for chunk in chunks:
            if wanted is not None and chunk.path.partition(".")[0] not in wanted:
                continue
            _check_chunk(chunk, rows, size)
            for page in pages_of(read, chunk):
                taken += _page_bytes(page, chunk, shared)
                largest = max(largest, page.size if chunk.is_delta else 0)
                if taken > most:
                    raise ExtentError(
                        f"its {size} bytes would become more than {most} in memory: no file of "
                        "real texts or numbers does"
                    )
    return Extent(sum(group.rows for group in groups), taken, largest)


def _check_chunk(chunk: Chunk, rows: int, size: int) -> None:
    if min(chunk.start, chunk.length, rows) < 0 or chunk.start + chunk.length > size:
        raise PageError("a column lies outside the file")
    if chunk.values < rows:
        raise PageError(f"a column has {chunk.values} values for {rows} rows")


def _page_bytes(page: Page, chunk: Chunk, shared: bool) -> int:
    """Return what a page takes; a dictionary of texts may be repeated by every value."""
    repeated = page.kind == DICTIONARY and chunk.is_text and not shared
    copies = max(chunk.values, 1) if repeated else 1
    return page.size * copies + page.values * (VALUE_BYTES + chunk.width)
