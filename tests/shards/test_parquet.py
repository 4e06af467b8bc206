"""Parquet shards in memory: what is written comes back, and damage is named."""

import io
import json
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards import parquet
from pipeline.shards.parquet import METADATA_KEY, read_rows, read_table, write_table
from schemas.errors import DataError
from schemas.tables import SCHEMA_VERSION, SCORES

TABLE = pa.schema([pa.field("name", pa.string()), pa.field("ids", pa.list_(pa.int32()))])


def table_of(lengths: list[int]) -> pa.Table:
    ids = [list(range(length)) for length in lengths]
    names = [None if length == 1 else f"row {row}" for row, length in enumerate(lengths)]
    return pa.table({"name": names, "ids": ids}, schema=TABLE)


def scores_of(tokens: list[int], k: int) -> pa.Table:
    rng = np.random.default_rng(0)

    def floats(scale: int, kind: Any) -> list[Any]:
        return [(-rng.random(count * scale)).astype(kind) for count in tokens]

    ids = [rng.integers(0, 262144, count * k).astype(np.int32) for count in tokens]
    columns = {
        "sequence_digest": [f"{row:032x}" for row in range(len(tokens))],
        "topk_ids": ids,
        "topk_logprobs": floats(k, np.float16),
        "tail_logprobs": floats(1, np.float32),
        "token_logprob": floats(1, np.float32),
        "token_rank": [np.zeros(count, np.int32) for count in tokens],
        "entropy": floats(1, np.float32),
    }
    return pa.table(columns, schema=pa.schema([SCORES.field(name) for name in columns]))


def with_metadata(record: Any) -> bytes:
    table = table_of([2, 3]).replace_schema_metadata({METADATA_KEY: json.dumps(record).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@given(st.lists(st.integers(0, 30), max_size=8))
def test_rows_come_back_as_they_were(lengths: list[int]) -> None:
    table = table_of(lengths)
    found, _ = read_table(write_table(table, {}, token_column="ids"), where="x")
    assert found.replace_schema_metadata(None).equals(table)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.data())
def test_some_rows_come_back_in_the_order_asked_for(
    lengths: list[int], draw: st.DataObject
) -> None:
    table, places = table_of(lengths), st.integers(0, len(lengths) - 1)
    asked = draw.draw(st.lists(places, max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_TOKENS", draw.draw(st.integers(1, 99)))
        data = write_table(table, {"key": "value"}, token_column="ids")
    found, metadata = read_rows(data, np.array(asked, dtype=np.int64), where="x")
    assert found.replace_schema_metadata(None).equals(table.take(pa.array(asked, pa.int64())))
    assert metadata["key"] == "value"


def test_a_row_group_that_no_row_is_asked_of_is_not_decoded() -> None:
    lengths = [parquet.ROW_GROUP_TOKENS] * 3
    data = bytearray(write_table(table_of(lengths), {}, token_column="ids"))
    last = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(2).column(1)
    start, size = last.data_page_offset, last.total_compressed_size
    data[start : start + size] = bytes(size)
    found, _ = read_rows(bytes(data), np.array([1, 0]), where="x")
    assert found.num_rows == 2
    with pytest.raises(DataError, match="not a readable"):
        read_rows(bytes(data), np.array([2]), where="x")


def test_a_row_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="x has 2 rows, row 2 is asked for"):
        read_rows(write_table(table_of([1, 2]), {}), np.array([0, 2]), where="x")


def test_scores_come_back_bit_for_bit() -> None:
    table = scores_of([5, 1, 40], k=8)
    found, _ = read_table(write_table(table, {}, token_column="token_logprob"), where="x")
    assert found.replace_schema_metadata(None).equals(table)


def test_metadata_comes_back_with_the_schema_version() -> None:
    metadata = {"k": 64, "codec": "typed-v1", "nested": {"é": [1, None, 0.5]}}
    data = write_table(table_of([1]), metadata, token_column="ids")
    _, found = read_table(data, where="x")
    assert found == {**metadata, "schema_version": SCHEMA_VERSION}


def test_the_same_table_gives_the_same_bytes() -> None:
    first = write_table(scores_of([5, 9], k=4), {"b": 1, "a": 2}, token_column="token_logprob")
    second = write_table(scores_of([5, 9], k=4), {"a": 2, "b": 1}, token_column="token_logprob")
    assert first == second


def test_chosen_columns_are_read_alone() -> None:
    data = write_table(table_of([3, 4]), {}, token_column="ids")
    found, _ = read_table(data, where="x", columns=["name"])
    assert found.column_names == ["name"]


@given(st.lists(st.integers(0, 25), min_size=1, max_size=40))
def test_row_groups_are_bounded_by_tokens(lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_TOKENS", 20)
        data = write_table(table_of(lengths), {}, token_column="ids")
    file, row = pq.ParquetFile(io.BytesIO(data)), 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        tokens = sum(lengths[row : row + rows])
        assert rows == 1 or tokens <= 20
        row += rows
    assert row == len(lengths)


def test_groups_are_as_large_as_the_bound_allows() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_TOKENS", 20)
        data = write_table(table_of([10] * 8), {}, token_column="ids")
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 4


def test_other_tools_open_a_shard_as_it_is() -> None:
    table = scores_of([5, 1, 40], k=8)
    data = write_table(table, {"k": 8}, token_column="token_logprob")
    frame = pl.read_parquet(io.BytesIO(data))
    assert frame["topk_ids"].to_list() == table["topk_ids"].to_pylist()
    assert frame["token_logprob"].to_list() == table["token_logprob"].to_pylist()


def test_numbers_are_byte_stream_split_and_nothing_is_a_dictionary() -> None:
    data = write_table(scores_of([50], k=8), {}, token_column="token_logprob")
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        assert column.compression == "ZSTD"
        assert not column.has_dictionary_page
        if "list" in column.path_in_schema:
            assert "BYTE_STREAM_SPLIT" in column.encodings


def test_a_truncated_shard_is_a_data_error_that_names_it() -> None:
    data = write_table(scores_of([50, 60], k=8), {}, token_column="token_logprob")
    for size in {0, 1, 4, 12, len(data) // 2, len(data) - 9, len(data) - 8, len(data) - 1}:
        with pytest.raises(DataError, match=r"store/x\.parquet is not a readable Parquet file"):
            read_table(data[:size], where="store/x.parquet")


def test_bytes_that_are_no_parquet_are_a_data_error() -> None:
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_table(b"PAR1" + bytes(100) + b"PAR1", where="x")


def test_a_parquet_of_another_program_is_a_data_error() -> None:
    sink = io.BytesIO()
    pq.write_table(table_of([1]), sink)
    with pytest.raises(DataError, match="x was not written by opd"):
        read_table(sink.getvalue(), where="x")


def test_a_newer_version_is_refused_and_named() -> None:
    data = with_metadata({"schema_version": SCHEMA_VERSION + 3})
    with pytest.raises(DataError) as caught:
        read_table(data, where="store/x.parquet")
    expected = f"store/x.parquet has schema version {SCHEMA_VERSION + 3}; this opd reads up to"
    assert expected in str(caught.value)
    assert "install a newer opd" in str(caught.value)


@pytest.mark.parametrize("record", [{}, [], "text", None, {"schema_version": "one"}])
def test_metadata_without_a_version_is_a_data_error(record: Any) -> None:
    with pytest.raises(DataError, match="x was not written by opd"):
        read_table(with_metadata(record), where="x")
