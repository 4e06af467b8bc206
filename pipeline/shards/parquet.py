"""Parquet shards in memory: tables to bytes and back, with the metadata of their stage.

The layout is measured: no dictionaries, byte-stream split for numbers, zstd level 1, row groups
bounded by tokens. A shard is built whole and re-opened before it may be published.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.shards.extent import checked_extent
from pipeline.shards.pages import Read, RowGroup, row_groups
from schemas.columns import list_lengths
from schemas.errors import DataError
from schemas.foreign import excerpt, shown
from schemas.ragged import stretches
from schemas.tables import SCHEMA_VERSION

ROW_GROUP_TOKENS = 32768
"""Tokens per row group at most, one row at least."""

METADATA_KEY = b"opd"

FOOTER_LIMITS = {
    "thrift_string_size_limit": 1 << 24,
    "thrift_container_size_limit": 1 << 16,
    "schema_depth_limit": 16,
}
"""Largest text, longest list and deepest schema of a footer that is read."""


def write_table(
    table: pa.Table, metadata: dict[str, Any], *, token_column: str | None = None
) -> bytes:
    """Return a table as the bytes of a Parquet file, re-opened and counted.

    Args:
        table: the rows.
        metadata: JSON values for the file's key-value metadata.
        token_column: list column whose lengths bound the row groups; None for one group.
    """
    record = json.dumps({"schema_version": SCHEMA_VERSION, **metadata}, sort_keys=True)
    table = table.replace_schema_metadata({METADATA_KEY: record.encode()})
    sink, start = io.BytesIO(), 0
    with pq.ParquetWriter(sink, table.schema, **_layout(table.schema)) as writer:
        for stop in _ends(table, token_column):
            writer.write_table(table.slice(start, stop - start))
            start = stop
    data = sink.getvalue()
    rows = pq.read_metadata(io.BytesIO(data)).num_rows
    if rows != table.num_rows:
        raise DataError(f"a shard was written with {rows} rows, expected {table.num_rows}")
    return data


def read_table(
    data: bytes, *, where: str, columns: list[str] | None = None, rows: int | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the rows and the metadata of a shard.

    Args:
        data: its bytes.
        where: what messages call it.
        columns: the only ones to decode.
        rows: how many rows a record promises; None where none does.

    Raises:
        DataError: not a Parquet file of opd, of a newer schema version, of another number of rows,
            or one that takes far more memory than shards of its size.
    """
    with _reading(data, where) as (file, groups):
        found = sum(group.rows for group in groups)
        if rows not in (None, found):
            raise DataError(f"{where} has {found} rows, its record says {rows}")
        checked_extent(groups, _reader(data), size=len(data), columns=columns)
        # threads would win nothing for a process that has one core, and their buffers stay theirs
        table = file.read(columns, use_threads=False)
        return table, _metadata(table, where)


def read_rows(
    data: bytes, rows: NDArray[np.int64], *, where: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Return some rows of a shard, in the given order, and its metadata.

    Only the row groups that hold them are decoded.

    Raises:
        DataError: as of `read_table`, or there is no such row.
    """
    with _reading(data, where) as (file, groups):
        sizes = np.array([group.rows for group in groups], np.int64)
        if rows.max(initial=-1) >= sizes.sum():
            raise DataError(f"{where} has {sizes.sum()} rows, row {rows.max()} is asked for")
        group_of_row = np.searchsorted(np.cumsum(sizes), rows, side="right")
        chosen = np.unique(group_of_row)
        read = [groups[place] for place in chosen]
        checked_extent(read, _reader(data), size=len(data))
        table = file.read_row_groups(chosen.tolist(), use_threads=False)
        before = np.cumsum(sizes) - sizes
        left_out = before[chosen] - (np.cumsum(sizes[chosen]) - sizes[chosen])
        places = rows - left_out[np.searchsorted(chosen, group_of_row)]
        return table.take(pa.array(places)), _metadata(table, where)


@contextmanager
def _reading(data: bytes, where: str) -> Iterator[tuple[pq.ParquetFile, list[RowGroup]]]:
    """Open a shard; what Arrow cannot decode is an error of the shard, a lack of memory is not."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), **FOOTER_LIMITS)
        yield file, row_groups(_reader(data), len(data))
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        words = excerpt(str(error))
        raise DataError(f"{where} is not a readable Parquet file: {words}") from error


def _reader(data: bytes) -> Read:
    return lambda start, length: data[start : start + length]


def _metadata(table: pa.Table, where: str) -> dict[str, Any]:
    raw = (table.schema.metadata or {}).get(METADATA_KEY, b"null")
    try:
        metadata: dict[str, Any] = json.loads(raw)
        version = metadata["schema_version"]
        if type(version) is not int:
            raise ValueError(version)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(
            f"{where} was not written by opd: its metadata has no key 'opd' with a schema version"
        ) from error
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {shown(version)}; this opd reads up to {SCHEMA_VERSION}: "
            "install a newer opd"
        )
    return metadata


def _layout(schema: pa.Schema) -> dict[str, Any]:
    split = [f"{f.name}.list.element" for f in schema if _is_split(f.type)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": False,
        "write_page_checksum": True,
    }


def _is_split(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return listed and not pa.types.is_boolean(kind.value_type)


def _ends(table: pa.Table, token_column: str | None) -> list[int]:
    """Return the row number after each row group."""
    if token_column is None:
        return [table.num_rows]
    return stretches(list_lengths(table, token_column), ROW_GROUP_TOKENS)
