"""Kinds of prompt file: what is read from each, and every mistake with its place."""

import gzip
import json
import math
import uuid
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.prompts.files import PromptFile, find_prompt_file
from pipeline.prompts.lines import jsonl_records
from pipeline.prompts.pinning import prepare_prompts
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.promptfiles import (
    CONFIG,
    TEMPLATE,
    TOKENIZER,
    char_tokenizer,
    pin,
    refusal,
    rows_of,
    run_of,
    write_lines,
    write_parquet,
)


def test_a_gzip_file_is_read_with_the_line_numbers_of_its_content(
    memory: Storage, tmp_path: Path
) -> None:
    plain = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}]).read_bytes()
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(plain))
    rows = rows_of(memory, pin(memory, path))
    assert [row["text"] for row in rows] == ["a", "b"]
    path.write_bytes(gzip.compress(plain + b"{"))
    assert f"{path}:3: malformed JSON" in refusal(Storage(f"memory://{uuid.uuid4().hex}"), path)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda _: b"not gzip at all"])
def test_a_damaged_gzip_file_is_named(memory: Storage, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"prompt": "a"}\n' * 50)))
    assert f"{path} cannot be read" in refusal(memory, path, 'prompts.on_error="skip"')


def test_a_parquet_file_gives_the_rows_that_the_same_jsonl_file_gives(
    memory: Storage, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "x", "name": None}, {"role": "user", "content": "y"}]
    records: list[dict[str, Any]] = [
        {"prompt": "a", "prompt_ids": None, "messages": None, "weight": 2, "reference": "r"},
        {"prompt": None, "prompt_ids": [8, 9], "messages": None, "weight": 1, "reference": None},
        {"prompt": None, "prompt_ids": None, "messages": chat, "weight": 1, "reference": None},
    ]
    tokenizer = char_tokenizer(template=TEMPLATE)
    lines = pin(memory, write_lines(tmp_path / "p.jsonl", records), tokenizer=tokenizer)
    other = Storage(f"memory://{uuid.uuid4().hex}")
    table = pin(other, write_parquet(tmp_path / "p.parquet", records), tokenizer=tokenizer)
    assert rows_of(memory, lines) == rows_of(other, table)
    assert lines.shards == table.shards


def test_free_parquet_columns_become_json(memory: Storage, tmp_path: Path) -> None:
    record = {"prompt": "a", "day": date(2020, 2, 3), "price": Decimal("1.50"), "gap": math.nan}
    path = write_parquet(tmp_path / "p.parquet", [record | {"tags": ["é", None]}])
    (row,) = rows_of(memory, pin(memory, path))
    expected = {"day": "2020-02-03", "price": "1.50", "gap": None, "tags": ["é", None]}
    assert json.loads(row["metadata"]) == expected


def test_errors_of_a_parquet_file_name_the_row(memory: Storage, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"prompt": "a"}, {"prompt": ""}, {"prompt": "a"}])
    message = refusal(memory, path)
    assert f"{path}:row 2: 'prompt' is empty" in message
    assert f"{path}:row 3: duplicate of row 1: it has the same token ids" in message


def test_parquet_text_that_is_not_utf8_names_its_row(memory: Storage, tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": text}), path)
    assert f"{path}:row 2: not UTF-8" in refusal(memory, path)


def test_a_parquet_file_without_a_prompt_column_names_the_nearest(
    memory: Storage, tmp_path: Path
) -> None:
    message = refusal(memory, write_parquet(tmp_path / "p.parquet", [{"promt": "a", "id": 1}]))
    assert "has no column prompt, prompt_ids or messages, found ['promt', 'id']" in message
    assert "did you mean to rename 'promt'?" in message


def test_a_damaged_parquet_file_is_named(memory: Storage, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 and no more")
    assert f"{path} is not a readable Parquet file" in refusal(memory, path)


def test_byte_order_marks_carriage_returns_and_blank_lines_do_no_harm(
    memory: Storage, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b\xe2\x80\xa8"}')
    assert [row["text"] for row in rows_of(memory, pin(memory, path))] == ["a", "b\u2028"]
    path.write_bytes(b'{"prompt": "a"}\r\n\r\n{"prompt": 1}')
    assert f"{path}:3:" in refusal(Storage(f"memory://{uuid.uuid4().hex}"), path)


def test_a_file_in_another_format_is_refused_by_its_name(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.json", [{"prompt": "a"}])
    message = refusal(memory, path)
    assert (
        f"prompts.train = '{path}'" in message
        and ".jsonl, .jsonl.gz, .jsonl.zst, .parquet" in message
    )


def test_a_missing_file_names_the_nearest_one(memory: Storage, tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    message = refusal(memory, tmp_path / "promts.jsonl")
    assert f"prompts.train: there is no file {tmp_path / 'promts.jsonl'}" in message
    assert f"did you mean {tmp_path / 'prompts.jsonl'}?" in message
    assert "correct the path" in refusal(memory, tmp_path / "none" / "p.jsonl")


def test_a_folder_without_prompt_files_is_refused(memory: Storage, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    assert "is a folder without prompt files" in refusal(memory, tmp_path / "p.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(memory: Storage, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    assert f"{path} holds no records" in refusal(memory, path, 'prompts.on_error="skip"')


@pytest.mark.parametrize("location", ["s3://p.jsonl", "memory://p.jsonl"])
def test_a_url_that_is_no_place_is_refused(memory: Storage, tmp_path: Path, location: str) -> None:
    with pytest.raises(ConfigError, match="is not a place to read from") as caught:
        prepare_prompts(run_of(memory, tmp_path, location), "train", TOKENIZER)
    assert f"prompts.train = {location!r}" in str(caught.value)


def test_a_file_url_and_a_path_are_the_same_file(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    first = pin(memory, path)
    run = run_of(memory, tmp_path, path.as_uri())
    assert prepare_prompts(run, "train", TOKENIZER) == first


def test_prompts_are_read_from_an_object_store(moto_storage: Storage) -> None:
    moto_storage.put("data/prompts.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}\n')
    run = run_of(moto_storage, Path("/"), f"{moto_storage.root}/data/prompts.jsonl")
    manifest = prepare_prompts(run, "train", TOKENIZER)
    assert [row["text"] for row in rows_of(moto_storage, manifest)] == ["a", "b"]
    missing = run_of(
        moto_storage, Path("/"), f"{moto_storage.root}/data/promts.jsonl", name="other"
    )
    with pytest.raises(ConfigError, match=r"did you mean s3://.*/data/prompts.jsonl\?"):
        prepare_prompts(missing, "train", TOKENIZER)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    file = find_prompt_file(str(path), key="prompts.train", config=CONFIG)
    assert file is not None
    file.check_unchanged()
    write_lines(path, [{"prompt": "b"}])
    with pytest.raises(ConfigError, match="changed while it was read"):
        file.check_unchanged()


def test_records_are_read_one_by_one(tmp_path: Path) -> None:
    file = PromptFile("many.jsonl", "", b'{"prompt": "a"}\n' * 3 + b"{")
    records = jsonl_records(file)
    assert next(records) == (1, {"prompt": "a"}, 16)
    assert [number for number, _, _ in records] == [2, 3, 4]
