"""What a Parquet file takes in memory is known, and refused, before any page of it is decoded."""

import io
import resource
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.shards import extent, pages
from pipeline.shards.extent import ExtentError, checked_extent
from pipeline.shards.pages import DICTIONARY, pages_of
from pipeline.shards.parquet import METADATA_KEY, read_rows, read_table
from pipeline.shards.thrift import PageError
from schemas.errors import DataError
from tests.support.runs import finish, start_function

RECORD = {METADATA_KEY: b'{"schema_version": 1}'}
FIRST = np.array([0])
ONE_GROUP = {"row_group_size": 1 << 30}
ADDRESS_SPACE = 3 << 30
"""Bytes that a child may map: pyarrow and numpy take half a gigabyte of it, a bomb far more."""


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(RECORD), sink, **options)
    return sink.getvalue()


def reader_of(data: bytes) -> Any:
    return lambda at, n: data[at : at + n]


def groups_of(data: bytes) -> list[pages.RowGroup]:
    return pages.row_groups(reader_of(data), len(data))


def extent_of(data: bytes, groups: slice = slice(None), **chosen: Any) -> extent.Extent:
    return checked_extent(groups_of(data)[groups], reader_of(data), size=len(data), **chosen)


def chunk_pages(data: bytes, column: int = 0) -> list[pages.Page]:
    return list(pages_of(reader_of(data), groups_of(data)[0].chunks[column]))


BOMBS = {
    "rows without a value": lambda: parquet_of(
        {"x": pa.nulls(40_000_000, pa.string())}, **ONE_GROUP
    ),
    "one row of many numbers": lambda: parquet_of(
        {"x": pa.ListArray.from_arrays([0, 40_000_000], pa.array(np.zeros(40_000_000, np.int8)))},
        compression="zstd",
    ),
    "a text that many rows share": lambda: parquet_of(
        {
            "x": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(50_000, np.int32)), pa.array(["a" * (1 << 20)])
            )
        }
    ),
}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [False, True])
def test_page_headers_say_what_was_written(version: str, use_dictionary: bool) -> None:
    column = pa.array([f"text {n % 50}" for n in range(5000)])
    data = parquet_of(
        {"x": column},
        data_page_version=version,
        use_dictionary=use_dictionary,
        data_page_size=1000,
        compression="zstd",
    )
    found = chunk_pages(data)
    kinds = [page.kind for page in found]
    assert kinds.count(DICTIONARY) == use_dictionary
    assert sum(page.values for page in found if page.kind != DICTIONARY) == 5000
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0)
    headers = chunk.total_uncompressed_size - sum(page.size for page in found)
    assert 0 < headers < 100 * len(found)


def test_the_extent_is_that_of_the_chosen_columns_and_row_groups() -> None:
    columns = {"x": pa.array(range(1000)), "y": pa.array(["a" * 100] * 1000)}
    data = parquet_of(columns, row_group_size=500, use_dictionary=False)
    whole, x, first = extent_of(data), extent_of(data, columns=["x"]), extent_of(data, slice(1))
    assert (whole.rows, first.rows) == (1000, 500)
    assert x.bytes < whole.bytes and abs(2 * first.bytes - whole.bytes) < 100
    assert whole.bytes > 100 * 1000 + 8 * 1000


def test_a_shared_text_is_counted_once_where_it_is_kept_once() -> None:
    data = parquet_of({"x": pa.array(["a" * 1000] * 1000)})
    assert extent_of(data, shared=True).bytes < 100_000 < 1_000_000 < extent_of(data).bytes


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str) -> None:
    data = BOMBS[name]()
    assert len(data) < 1 << 20
    with pytest.raises(ExtentError, match="would become more than"):
        extent_of(data)
    with pytest.raises(DataError, match="x is not a readable Parquet file: its .* bytes would"):
        read_table(data, where="x")
    with pytest.raises(DataError, match="would become more than"):
        read_rows(data, FIRST, where="x")


def test_values_of_a_fixed_length_count_where_they_are_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extent, "SMALL", 1 << 21)
    data = parquet_of({"x": pa.nulls(4, pa.binary(1 << 20))}, use_dictionary=False)
    with pytest.raises(ExtentError):
        extent_of(data)


def refuse_bombs() -> int:
    """Return how many bombs end in another way than in a DataError, in little memory."""
    wrong = 0
    bombs = [BOMBS["rows without a value"](), BOMBS["a text that many rows share"]()]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for data in bombs:
        try:
            read_table(data, where="x")
            wrong += 1
        except DataError:
            continue
    return wrong


def test_a_bomb_takes_no_memory() -> None:
    assert finish(start_function(refuse_bombs, warm=False)).code == 0


def lying(data: bytes, *, size: int | None = None, values: int | None = None) -> bytes:
    """Return a file of one plain page whose header says something else."""
    (page,) = chunk_pages(data)
    start = groups_of(data)[0].chunks[0].start
    for old, new in ((page.size, size), (page.values, values)):
        if new is not None:
            before, after = zigzag(old), zigzag(new)
            assert len(before) == len(after)
            place = data.index(before, start)
            data = data[:place] + after + data[place + len(before) :]
    return data


def zigzag(number: int) -> bytes:
    number <<= 1
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def honest() -> bytes:
    """Return a file with a page of 17 million bytes and as many rows, in few of its own."""
    column = pa.array(np.zeros((1 << 24) + 77, bool))
    return parquet_of(
        {"x": column},
        use_dictionary=False,
        compression="zstd",
        data_page_size=1 << 30,
        max_rows_per_page=1 << 30,
        **ONE_GROUP,
    )


def test_a_page_header_that_lies_is_found_before_its_page_is_decoded() -> None:
    data = honest()
    read_table(data, where="x")
    more = lying(data, values=(1 << 27) - 1)
    with pytest.raises(ExtentError):
        extent_of(more)
    with pytest.raises(DataError, match="would become more than"):
        read_table(more, where="x")
    fewer = lying(data, values=(1 << 24) - 1)
    with pytest.raises(PageError, match="their column should have"):
        extent_of(fewer)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "does not end"),
        (b"\x15\x00", "does not end"),
        (b"\x00", "lacks its type"),
        (b"\x15\x02\x15\x01\x15\x02\x00", "negative size"),
        (b"\x1c" * 40 + b"\x00" * 40, "nested too deeply"),
        (b"\x15" + b"\xff" * 20, "does not end"),
        (b"\x1e", "field of type 14"),
    ],
)
def test_bytes_that_are_no_page_header_are_refused(header: bytes, words: str) -> None:
    with pytest.raises(PageError, match=words):
        list(pages_of(reader_of(header), pages.Chunk("x", 0, 100, 1, False, False)))


def test_memory_that_ran_out_is_no_fault_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", no_memory)
    with pytest.raises(MemoryError):
        read_table(parquet_of({"x": pa.array([1])}), where="x")


def test_the_footer_is_read_as_arrow_reads_it() -> None:
    columns = {
        "text": pa.array(["a", "b", None]),
        "lists": pa.array([[{"é": 1}], None, []]),
        "fixed": pa.array([b"abc", None, b"def"], pa.binary(3)),
    }
    data = parquet_of(columns, row_group_size=2)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    for place, (rows, chunks) in enumerate(groups_of(data)):
        group = metadata.row_group(place)
        assert rows == group.num_rows
        assert [c.path for c in chunks] == ["text", "lists.list.element.é", "fixed"]
        assert [c.is_text for c in chunks] == [True, False, False]
        assert [c.width for c in chunks] == [0, 0, 3]
        for index, chunk in enumerate(chunks):
            column = group.column(index)
            assert chunk.start == column.dictionary_page_offset
            assert (chunk.length, chunk.values) == (column.total_compressed_size, column.num_values)


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", bytes(8), b"\xff" * 12, b"\x00" + b"\x01\0\0\0PAR1"]
)
def test_bytes_without_a_footer_are_refused(data: bytes) -> None:
    with pytest.raises(PageError, match="a footer"):
        groups_of(data)


def test_statistics_for_which_pyarrow_would_end_the_process_are_refused() -> None:
    data = parquet_of({"x": pa.array(["a", None])}, use_dictionary=False, row_group_size=2)
    histogram = b"\x26\x02\x02"  # of levels: a list of two numbers, 1 and 1
    assert data.count(histogram) == 1
    broken = data.replace(histogram, b"\x16\x82\x01")  # a list of one number
    assert len(groups_of(broken)) == 1
    with pytest.raises(DataError, match="histogram size mismatch"):
        read_table(broken, where="x")
    with pytest.raises(DataError, match="histogram size mismatch"):
        read_rows(broken, FIRST, where="x")
