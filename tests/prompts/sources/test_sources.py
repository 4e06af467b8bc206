"""Where prompts may lie: formats, folders, services, columns of other names; same ids of all."""

import gzip
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.prompts.files import find_prompt_file
from pipeline.prompts.pinning import prepare_prompts
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.shapes import renamed
from pipeline.prompts.values import BadRecord
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.errors import ConfigError, IdentityError, OpdError, StorageError
from schemas.location import check_source
from tests.support.promptfiles import (
    CONFIG,
    SECTIONS,
    TOKENIZER,
    pin,
    refusal,
    rows_of,
    run_of,
    write_lines,
    write_parquet,
)

RECORDS = [{"prompt": letter, "reference": str(index)} for index, letter in enumerate("abcdef")]


def fresh() -> Storage:
    return Storage(f"memory://{uuid.uuid4().hex}")


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records in the format that a name tells."""
    if path.name.endswith(".parquet"):
        return write_parquet(path, records)
    plain = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    pack = {".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)
    path.write_bytes(pack(plain))
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Give the URL of a web server of a folder, `tmp_path / "web"`."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# --- formats and folders ---


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.jsonl.zst", "p.parquet"])
def test_every_format_gives_the_same_rows(memory: Storage, tmp_path: Path, name: str) -> None:
    plain = pin(fresh(), write(tmp_path / "p.jsonl", RECORDS))
    other = pin(memory, write(tmp_path / name, RECORDS))
    assert other.shards == plain.shards


def test_a_folder_is_read_as_its_files_one_after_the_other(memory: Storage, tmp_path: Path) -> None:
    whole = pin(fresh(), write(tmp_path / "p.jsonl", RECORDS))
    folder = tmp_path / "data"
    folder.mkdir()
    for index, name in enumerate(("0.jsonl.zst", "1.parquet", "2.jsonl")):
        write(folder / name, RECORDS[2 * index : 2 * index + 2])
    for name in ("README.md", "_SUCCESS", ".hidden.jsonl", "other.csv"):
        (folder / name).write_text("{")
    (folder / "deeper").mkdir()
    manifest = pin(memory, folder)
    assert manifest.shards == whole.shards and manifest.rows == 6
    write(folder / "3.jsonl", [{"prompt": "g"}])
    with pytest.raises(IdentityError, match="has changed since"):
        pin(memory, folder)


def test_a_pattern_chooses_the_files_of_a_folder(memory: Storage, tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", RECORDS[:2])
    write(tmp_path / "train-1.parquet", RECORDS[2:4])
    write(tmp_path / "test-0.jsonl", RECORDS[4:])
    assert [row["text"] for row in rows_of(memory, pin(memory, tmp_path / "train-*"))] == [*"abcd"]


def test_messages_name_the_file_of_a_folder_and_its_line(memory: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "0.jsonl", RECORDS)
    write_lines(folder / "1.jsonl", [b"{x", {"prompt": "c"}])
    told = refusal(memory, folder)
    assert f"{folder}/1.jsonl:1: malformed JSON" in told
    assert f"{folder}/1.jsonl:2: duplicate of {folder}/0.jsonl:3" in told


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda _: b"not zstd at all"])
def test_a_damaged_zstd_file_is_named(memory: Storage, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "p.jsonl.zst"
    path.write_bytes(damage(zstd(b'{"prompt": "a"}\n' * 50)))
    assert f"{path} cannot be read" in refusal(memory, path, 'prompts.on_error="skip"')


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst", "p.parquet"])
def test_no_more_is_read_than_is_allowed(memory: Storage, tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"{index:04} " + "a" * 200} for index in range(2000)]
    path = write(tmp_path / name, rows)
    told = refusal(memory, path, "prompts.max_gb=0.0003", "prompts.max_tokens=999")
    assert "prompts.max_gb" in told and "raise it" in told
    assert pin(memory, path, "prompts.max_gb=0.01", "prompts.max_tokens=999").rows == 2000


def test_a_zstd_bomb_ends_soon(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    path.write_bytes(zstd(b'{"prompt": "' + b"a" * 1000 + b'"}\n') * 1 + zstd(b" " * (1 << 27)))
    found = find_prompt_file(str(path), key="prompts.train", config=CONFIG)
    assert found is not None
    with pytest.raises(ConfigError, match="without an end of a"):
        list(record_chunks(found))


# --- columns of other names ---


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_columns_get_our_names(memory: Storage, tmp_path: Path, name: str) -> None:
    plain = pin(fresh(), write(tmp_path / "plain.jsonl", RECORDS))
    theirs = [{"question": one["prompt"], "answer": one["reference"]} for one in RECORDS]
    mapped = 'prompts.columns={prompt = "question", reference = "answer"}'
    manifest = pin(memory, write(tmp_path / name, theirs), mapped)
    assert rows_of(memory, manifest) == rows_of(fresh_copy(plain, tmp_path), plain)
    with pytest.raises(IdentityError, match=r"prompts\.columns"):
        pin(memory, tmp_path / name)


def fresh_copy(manifest: Any, tmp_path: Path) -> Storage:
    """Return a store in which the plain file is pinned."""
    storage = fresh()
    assert pin(storage, tmp_path / "plain.jsonl") == manifest
    return storage


def test_a_column_that_is_not_there_is_named(memory: Storage, tmp_path: Path) -> None:
    mapped = 'prompts.columns={prompt = "question"}'
    told = refusal(memory, write(tmp_path / "p.parquet", [{"text": "a"}]), mapped)
    assert "no column 'question', which prompts.columns names; found ['text']" in told
    told = refusal(memory, write(tmp_path / "p.jsonl", [{"text": "a"}]), mapped)
    assert "expected one of prompt" in told


def test_two_columns_for_one_name_are_refused() -> None:
    columns = {"prompt": "question"}
    with pytest.raises(BadRecord, match="leave one of them out"):
        renamed({"prompt": "a", "question": "b"}, columns)
    assert renamed({"prompt": None, "question": "b"}, columns) == {"prompt": "b"}
    swapped = {"prompt": "reference", "reference": "prompt"}
    assert renamed({"prompt": "a", "reference": "b"}, swapped) == {"reference": "a", "prompt": "b"}
    assert renamed([1], columns) == [1]


@pytest.mark.parametrize("value", ['{x = "a"}', '{prompt = "a", reference = "a"}', "3"])
def test_columns_that_make_no_sense_are_refused(value: str) -> None:
    text = SECTIONS.format(name="first", train="p.jsonl")
    with pytest.raises(ConfigError, match=r"prompts\.columns"):
        parse_config(text, where="run.toml", overrides=[f"prompts.columns={value}"])


# --- services ---


def test_a_file_of_a_web_server_is_pinned_as_one_of_the_disk(
    memory: Storage, tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write(tmp_path / "web" / "p.parquet", RECORDS)
    run = run_of(memory, tmp_path, f"{web}/p.parquet")
    manifest = prepare_prompts(run, "train", TOKENIZER)
    assert manifest.source == f"{web}/p.parquet"
    assert manifest.shards == pin(fresh(), tmp_path / "web" / "p.parquet").shards
    assert list(tmp_path.glob("opd-*")) == [], "nothing of it is left on the disk"


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("{web}/nowhere.jsonl", ConfigError, "there is no file"),
        ("{web}/p.csv", ConfigError, "expected a file that ends in"),
        ("http://127.0.0.1:9/p.jsonl", StorageError, "cannot be read now"),
        ("hf://datasets/no-one/nothing/p.parquet", StorageError, "offline mode"),
        ("hf://datasets/no-one/nothing/data", StorageError, "offline mode"),
        ("nosuch://host/p.jsonl", ConfigError, "Protocol not known"),
        ("gs://bucket/p.jsonl", ConfigError, "install"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_words(
    memory: Storage, tmp_path: Path, web: str, url: str, error: type[OpdError], words: str
) -> None:
    run = run_of(memory, tmp_path, url.format(web=web))
    with pytest.raises(error, match=words) as caught:
        prepare_prompts(run, "train", TOKENIZER)
    assert "prompts.train" in str(caught.value)


def test_a_file_of_a_service_that_is_too_large_is_not_fetched_to_its_end(
    memory: Storage, tmp_path: Path, web: str
) -> None:
    (tmp_path / "web" / "p.jsonl").write_bytes(b'{"prompt": "a"}\n' * 400_000)
    run = run_of(memory, tmp_path, f"{web}/p.jsonl", "prompts.max_gb=0.001")
    with pytest.raises(ConfigError, match="larger than 0.001 GiB"):
        prepare_prompts(run, "train", TOKENIZER)


@pytest.mark.parametrize(
    "text",
    [
        *("https://me:pass@host/p.jsonl", "https://host/p.jsonl?token=x", "hf://me:p/a@b/p.jsonl"),
        *("simplecache::https://host/p.jsonl", "http:///", "://x", "https://host/../p.jsonl"),
        *("ht tp://host/p.jsonl", "s3://", "zip://a::https://b/c"),
    ],
)
def test_what_is_no_place_to_read_from_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_source(text)
    assert "pass" not in str(caught.value).replace("password", "")
    assert "token=x" not in str(caught.value)


def test_a_revision_of_the_hub_is_no_secret() -> None:
    check_source("hf://datasets/openai/gsm8k@main/main/train-*.parquet")
