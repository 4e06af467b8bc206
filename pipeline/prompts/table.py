"""Records of a Parquet file: its rows as plain Python values, some at a time.

Promises: what the file takes in memory is bounded before a page is decoded; a text that many rows
share is kept once. Must not: judge what a record holds.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.prompts.files import PromptFile
from pipeline.prompts.lines import LARGEST_RECORD, Sized
from pipeline.prompts.plain import plain
from pipeline.prompts.shapes import CHAT_COLUMNS, KINDS, expected_shape
from pipeline.shards.extent import Extent, checked_extent
from pipeline.shards.pages import RowGroup, row_groups
from schemas.errors import ConfigError
from schemas.foreign import excerpt, shown

BATCH_ROWS, BATCH_BYTES = 4096, 1 << 26
"""Rows turned into Python values at once, and about how many bytes they take."""

PREFIXED_BYTES = 1 << 30
"""Bytes that the texts of a batch may take where they are stored as ends of other texts."""

Unreadable = (pa.ArrowException, OSError, ValueError, LookupError, TypeError)
"""What pyarrow raises for bytes that are no Parquet file, or one that contradicts itself."""


def parquet_records(file: PromptFile, columns: Mapping[str, str]) -> Iterator[Sized]:
    """Yield the rows of a Parquet file.

    Args:
        file: the file.
        columns: our name of a column → the file's, where it has another one.

    Raises:
        ConfigError: the file cannot be read, has none of the prompt columns or a name twice, or
            would take far more memory than files of its size.
    """
    try:
        with file.open() as raw:
            parquet, extent = _opened(file, raw, columns)
            number = 0
            for batch in parquet.iter_batches(batch_size=_batch_rows(extent)):
                for value, size in _rows(batch):
                    number += 1
                    if size > LARGEST_RECORD:
                        raise ConfigError(
                            f"{file.place(number)} is larger than {LARGEST_RECORD} bytes"
                        )
                    yield number, value, size
    except MemoryError:
        raise
    except Unreadable as error:
        words = excerpt(str(error))
        raise ConfigError(f"{file.location} is not a readable Parquet file: {words}") from error


def _opened(
    file: PromptFile, raw: BinaryIO, columns: Mapping[str, str]
) -> tuple[pq.ParquetFile, Extent]:
    def read(start: int, length: int) -> bytes:
        raw.seek(start)
        return raw.read(length)

    footer = pq.ParquetFile(raw)
    _check_columns(file, footer.schema_arrow, columns)
    groups = row_groups(read, file.size())
    extent = checked_extent(groups, read, size=file.size(), shared=True)
    if file.most is not None and extent.bytes > file.most:
        raise ConfigError(
            f"{file.location} takes {extent.bytes / 2**30:.1f} GiB decompressed, more than "
            "prompts.max_gb allows: raise it, or name fewer files"
        )
    parquet = pq.ParquetFile(
        raw,
        metadata=footer.metadata,
        read_dictionary=_shared_texts(footer.metadata, groups),
        coerce_int96_timestamp_unit="us",  # nanoseconds would wrap after the year 2262
        arrow_extensions_enabled=not _has_json(footer.metadata),  # else it would not be shared
    )
    return parquet, extent


def _shared_texts(metadata: Any, groups: list[RowGroup]) -> list[str]:
    """Return the columns of texts that Arrow can read with each different text kept once."""
    leaves = (metadata.schema.column(index) for index in range(metadata.num_columns))
    ends = {chunk.path for group in groups for chunk in group.chunks if chunk.is_delta}
    return [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and not str(leaf.logical_type).startswith("Decimal")
        and leaf.path not in ends
    ]


def _has_json(metadata: Any) -> bool:
    leaves = (metadata.schema.column(index) for index in range(metadata.num_columns))
    return any(str(leaf.logical_type) == "JSON" for leaf in leaves)


def _batch_rows(extent: Extent) -> int:
    rows = min(BATCH_ROWS, BATCH_BYTES * extent.rows // max(extent.bytes, 1))
    if extent.largest_page:
        rows = min(rows, PREFIXED_BYTES // extent.largest_page)
    return max(rows, 1)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], int]]:
    columns = [plain(column) for column in batch.columns]
    names, sizes = batch.schema.names, np.sum([sizes for _, sizes in columns], axis=0)
    for *values, size in zip(*(values for values, _ in columns), sizes.tolist(), strict=True):
        yield dict(zip(names, values, strict=True)), size


def _check_columns(file: PromptFile, schema: pa.Schema, columns: Mapping[str, str]) -> None:
    absent = [theirs for theirs in columns.values() if theirs not in schema.names]
    if absent:
        raise ConfigError(
            f"{file.location} has no column {shown(absent[0])}, which prompts.columns names; found "
            f"{shown(schema.names)}"
        )
    ours = {theirs: name for name, theirs in columns.items()}
    names = [ours.get(name, name) for name in schema.names]
    if set(names).isdisjoint({*KINDS, *CHAT_COLUMNS}):
        close = next((c for k in KINDS for c in difflib.get_close_matches(k, names, n=1)), None)
        hint = f"; did you mean to rename {close!r}?" if close else expected_shape(names)
        raise ConfigError(
            f"{file.location} has no column {', '.join(KINDS[:-1])} or {KINDS[-1]}, found "
            f"{shown(names)}{hint}"
        )
    twice = _repeated(names) or next(filter(None, (_inner(field.type) for field in schema)), None)
    if twice is not None:
        raise ConfigError(f"{file.location} has two columns or fields {shown(twice)}: rename one")


def _repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _inner(kind: pa.DataType) -> str | None:
    """Return a name that stands twice in a struct somewhere inside a type."""
    parts = [kind.field(index) for index in range(kind.num_fields)]
    twice = _repeated([part.name for part in parts]) if pa.types.is_struct(kind) else None
    return twice or next(filter(None, (_inner(part.type) for part in parts)), None)
