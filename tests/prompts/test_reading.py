"""Prompt files that would hide, repeat or grow without end: named, bounded, nothing changed."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.prompts import lines, reading
from pipeline.prompts.files import PromptFile, find_prompt_file
from pipeline.prompts.lines import FORMATS, jsonl_records
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.table import parquet_records
from pipeline.prompts.values import BadRecord
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.promptfiles import CONFIG, TEMPLATE, USER, char_tokenizer, refusal, write_lines

GOOD = b'{"prompt": "a"}\n'


def values_of(data: bytes, name: str = "p.jsonl") -> list[Any]:
    return [value for _, value, _ in jsonl_records(PromptFile(name, "", data))]


def parquet_file(path: Path, columns: dict[str, Any], **options: Any) -> PromptFile:
    pq.write_table(pa.table(columns), path, **options)
    file = find_prompt_file(str(path), key="prompts.train", config=CONFIG)
    assert file is not None
    return file


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1, "a": 1}', "'a' stands twice in one object"),
        (b'{"x": [{"b": {"a": 1, "\\u0061": 2}}]}', "'a' stands twice in one object"),
        (b'{"x": 1e400}', "'1e400' is beyond any float64"),
        (b'{"x": -1E999}', "'-1E999' is beyond any float64"),
        (b'{"x": ' + b"9" * 5000 + b"}", "a number has thousands of digits"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"x": "a\tb"}', "Invalid control character at"),
    ],
)
def test_json_of_which_something_would_be_lost_is_no_record(line: bytes, words: str) -> None:
    first, problem = values_of(GOOD + line)
    assert first == {"prompt": "a"}
    assert isinstance(problem, BadRecord) and words in str(problem)


def test_numbers_stay_what_they_are() -> None:
    (found,) = values_of(b'{"a": -0, "b": 1E5, "c": 12345678901234567890, "d": 5e-324}')
    assert json.dumps(found) == '{"a": 0, "b": 100000.0, "c": 12345678901234567890, "d": 5e-324}'


def test_a_line_is_not_read_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST_RECORD", 100)
    assert len(values_of(GOOD * 50)) == 50
    for data in (GOOD + b"a" * 101, GOOD + b" " * 101, GOOD + b"\n" * 101):
        with pytest.raises(ConfigError, match=r"p.jsonl:\d+: more than 100 bytes"):
            values_of(data)


@pytest.mark.parametrize("magic", FORMATS)
def test_a_file_of_another_format_is_named(magic: bytes) -> None:
    with pytest.raises(ConfigError, match=f"p.jsonl is {FORMATS[magic][:12]}"):
        values_of(b"\n" + magic + b"rest\n" + GOOD)
    assert len(values_of(GOOD + magic)) == 2


def test_a_compressed_file_may_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL", 100_000)
    data = gzip.compress(b'{"prompt": "' + b"a" * 1000 + b'"}\n')
    fine = PromptFile("p.jsonl.gz", "", data * 50)
    assert sum(map(len, record_chunks(fine))) == 50
    bomb = PromptFile("p.jsonl.gz", "", gzip.compress(GOOD * 50_000))
    with pytest.raises(ConfigError, match=r"p.jsonl.gz:\d+: the file's \d+ bytes have become more"):
        list(record_chunks(bomb))


def test_a_chunk_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 50)
    chunks = list(record_chunks(PromptFile("p.jsonl", "", GOOD * 9)))
    assert [len(chunk) for chunk in chunks] == [4, 4, 1]
    assert [number for chunk in chunks for number, _ in chunk] == list(range(1, 10))


def test_a_text_that_rows_share_is_one_object(tmp_path: Path) -> None:
    shared = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(3000, np.int16)), pa.array(["s" * (1 << 20)])
    )
    prompts = pa.array([str(row) for row in range(3000)])
    chats = pa.array([[{"role": "user", "content": "c" * 1000}]] * 3000)
    columns = {"prompt": prompts, "system": shared, "chat": chats}
    file = parquet_file(tmp_path / "p.parquet", columns)
    held = [value for _, value, _ in parquet_records(file, {})]
    assert [row["prompt"] for row in held] == prompts.to_pylist()  # type: ignore[index]
    assert len({id(row["system"]) for row in held}) == 1  # type: ignore[index]
    assert len({id(row["chat"][0]["content"]) for row in held}) == 1  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"p.parquet:row \d+: the file's \d+ bytes have become"):
        list(record_chunks(file))


def test_a_row_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prompts.table.LARGEST_RECORD", 1000)
    columns = {"prompt": pa.array(["a", "b" * 1000])}
    file = parquet_file(tmp_path / "p.parquet", columns, use_dictionary=False)
    with pytest.raises(ConfigError, match=r"p.parquet:row 2 is larger than 1000 bytes"):
        list(parquet_records(file, {}))


@pytest.mark.parametrize("name", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_texts_of_every_encoding_are_read(tmp_path: Path, name: str) -> None:
    texts = ["p" * (1 << 16) + str(row) for row in range(300)]
    encoding: Any = {"column_encoding": {"prompt": name}, "use_dictionary": False}
    file = parquet_file(tmp_path / "p.parquet", {"prompt": pa.array(texts)}, **encoding)
    assert [row["prompt"] for _, row, _ in parquet_records(file, {})] == texts  # type: ignore[index]


@pytest.mark.parametrize("columns", [["prompt", "x", "x"], ["prompt", "prompt"]])
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, columns: list[str]) -> None:
    path = tmp_path / "p.parquet"
    table = pa.Table.from_arrays([pa.array(["a"])] * len(columns), columns)
    pq.write_table(table, path)
    file = PromptFile(str(path), "", path.read_bytes())
    with pytest.raises(ConfigError, match=f"two columns or fields '{columns[-1]}': rename one"):
        list(parquet_records(file, {}))


def test_timestamps_of_96_bits_do_not_wrap(tmp_path: Path) -> None:
    column = pa.array([253402300800 * 10**6], pa.timestamp("us"))
    columns = {"prompt": pa.array(["a"]), "at": column}
    file = parquet_file(
        tmp_path / "p.parquet", columns, use_deprecated_int96_timestamps=True, store_schema=False
    )
    ((_, row, _),) = parquet_records(file, {})
    assert str(row["at"]) == "10000-01-01 00:00:00"  # type: ignore[index]


@pytest.mark.parametrize("depth", [50, 500, 900, 990])
def test_deep_values_are_records_or_named(memory: Storage, tmp_path: Path, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    chat = json.dumps({**USER, "x": 0}).encode().replace(b"0", deep)
    records = [b'{"messages": [' + chat + b"]}", b'{"prompt": "a", "x": ' + deep + b"}", {}, deep]
    path = write_lines(tmp_path / "p.jsonl", records)
    assert "p.jsonl:3: " in refusal(memory, path, tokenizer=char_tokenizer(template=TEMPLATE))


def test_the_words_of_a_template_are_printable_and_short(memory: Storage, tmp_path: Path) -> None:
    template = "{{ raise_exception(messages[0].content) }}"
    content = "\x1b[31m" + "long" * 1000
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [{**USER, "content": content}]}])
    words = refusal(memory, path, tokenizer=char_tokenizer(template=template))
    assert "\x1b" not in words and "\\x1b[31mlong" in words and len(words) < 1000


def test_a_link_has_the_format_of_its_own_name(memory: Storage, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(GOOD + b"{")
    (tmp_path / "p.jsonl").symlink_to(tmp_path / "blob")
    assert f"{tmp_path / 'p.jsonl'}:2: malformed JSON" in refusal(memory, tmp_path / "p.jsonl")
