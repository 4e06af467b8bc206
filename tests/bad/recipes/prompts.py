"""Prompt files that no text says: Parquet, compressed, bombs, pipes and links."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import uuid
import zipfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.tiny import make_model

LINE = b'{"prompt": "1+1="}\n'
FAR = 253402300800
"""The first second of the year 10000."""


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Write columns as `p.parquet`; two rows and a prompt column unless the columns say more."""
    path = folder / "p.parquet"
    table = {"prompt": pa.array(["1+1=", "1+2="]), **columns}
    pq.write_table(pa.table(table), path, **options)
    return path


def _free(*values: Any, kind: pa.DataType) -> Any:
    return lambda folder: write(folder, {"at": pa.array(values, kind)})


nanoseconds = _free(1, 2, kind=pa.timestamp("ns"))
far_timestamps = _free(FAR, None, kind=pa.timestamp("s"))
least_timestamps = _free(-(2**63), 2**63 - 1, kind=pa.timestamp("us"))
zoned = _free(0, FAR, kind=pa.timestamp("s", "Europe/Berlin"))
far_dates = _free(2**31 - 1, -(2**31), kind=pa.date32())
late_times = _free(200_000, -5, kind=pa.time32("s"))
nano_times = _free(1, 10**13, kind=pa.time64("ns"))
nano_durations = _free(1, 2, kind=pa.duration("ns"))
long_durations = _free(2**62, -(2**62), kind=pa.duration("s"))
times_in_lists = _free([1], [None, 2], kind=pa.list_(pa.timestamp("ns")))
half_floats = _free(1.5, None, kind=pa.float16())
wide_decimals = _free(Decimal("1." + "3" * 60), None, kind=pa.decimal256(70, 60))
views = _free("a", "b" * 40, kind=pa.string_view())
list_views = _free(["a"], None, kind=pa.list_view(pa.string()))
maps = _free([("a", 1), ("a", 2)], None, kind=pa.map_(pa.string(), pa.int32()))
nothing = _free(None, None, kind=pa.null())
bytes_column = _free(b"\xff\x00", b"", kind=pa.binary())
unsigned = _free(2**64 - 1, 0, kind=pa.uint64())


def unknown_zone(folder: Path) -> None:
    """Timestamps in a time zone that no database has."""
    write(folder, {"at": pa.array([1, 2], pa.timestamp("us", "Mars/Phobos"))})


def identifiers(folder: Path) -> None:
    """A column of UUIDs."""
    write(folder, {"at": pa.array([uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes], pa.uuid())})


def struct_twice(folder: Path) -> None:
    """A struct with two fields of one name."""
    parts = [pa.array([1, 2]), pa.array([3, 4])]
    write(folder, {"at": pa.StructArray.from_arrays(parts, ["a", "a"])})


def columns_twice(folder: Path) -> None:
    """Two columns called prompt."""
    arrays = [pa.array(["1+1="]), pa.array(["1+2="])]
    pq.write_table(pa.Table.from_arrays(arrays, ["prompt", "prompt"]), folder / "p.parquet")


def _prompts(values: Sequence[Any], kind: pa.DataType, name: str = "prompt") -> Any:
    def recipe(folder: Path) -> None:
        pq.write_table(pa.table({name: pa.array(values, kind)}), folder / "p.parquet")

    return recipe


large_texts = _prompts(["1+1=", "1+2="], pa.large_string())
text_views = _prompts(["1+1=", "1+2="], pa.string_view())
dictionary_texts = _prompts(["1+1=", None, "1+1="], pa.dictionary(pa.int8(), pa.string()))
binary_texts = _prompts([b"1+1=", b"\xff"], pa.binary())
date_prompts = _prompts([1, 2**30], pa.date32())
null_prompts = _prompts([None, None], pa.string())
lists_of_lists = _prompts([[[1]], [[2]]], pa.list_(pa.list_(pa.int32())), "prompt_ids")
float_ids = _prompts([[3.0]], pa.list_(pa.float64()), "prompt_ids")
null_ids = _prompts([[3, None]], pa.list_(pa.int64()), "prompt_ids")
wide_ids = _prompts([[2**64 - 1]], pa.list_(pa.uint64()), "prompt_ids")
no_rows = _prompts([], pa.string())


def not_utf8(folder: Path) -> None:
    """Text in a Parquet file that is no UTF-8, in a row of its own."""
    raw = pa.array([b"1+1=", b"\xff\xfe"], pa.binary())
    text = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": text}), folder / "p.parquet")


def null_bomb(folder: Path) -> None:
    """Fifty million rows that hold nothing."""
    write(folder, {"prompt": pa.nulls(50_000_000, pa.string())}, compression="zstd")


def list_bomb(folder: Path) -> None:
    """One prompt of forty million ids that are all 0."""
    values = pa.array(np.zeros(40_000_000, np.int8))
    ids = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    pq.write_table(pa.table({"prompt_ids": ids}), folder / "p.parquet", compression="zstd")


def shared_text_bomb(folder: Path) -> None:
    """A system prompt of a million letters that all rows share: gigabytes from kilobytes."""
    shared = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(5000, np.int16)), pa.array(["1" * (1 << 20)])
    )
    prompts = pa.array([f"{row:04}+1=" for row in range(5000)])
    write(folder, {"prompt": prompts, "system": shared})


def cut_parquet(folder: Path) -> None:
    """A Parquet file without its last bytes."""
    path = write(folder, {})
    path.write_bytes(path.read_bytes()[:-9])


def footer_of_gigabytes(folder: Path) -> None:
    """A Parquet file that claims a footer of two gigabytes."""
    path = write(folder, {})
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", (1 << 31) - 1) + b"PAR1")


def zeroed_pages(folder: Path) -> None:
    """A Parquet file whose pages are zeros."""
    path = write(folder, {})
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)


def lines_as_parquet(folder: Path) -> None:
    """Lines of JSON in a file that is called .parquet."""
    (folder / "p.parquet").write_bytes(LINE * 3)


def parquet_as_lines(folder: Path) -> None:
    """A Parquet file that is called .jsonl."""
    write(folder, {}).rename(folder / "p.jsonl")


def _lines(data: bytes, name: str = "p.jsonl") -> Any:
    return lambda folder: (folder / name).write_bytes(data)


gzip_as_lines = _lines(gzip.compress(LINE))
bzip2_as_lines = _lines(bz2.compress(LINE))
xz_as_lines = _lines(lzma.compress(LINE))
utf16 = _lines(LINE.decode().encode("utf-16"))
utf16_unmarked = _lines(LINE.decode().encode("utf-16-be"))
long_line = _lines(b'{"prompt": "' + b"a" * ((1 << 26) + 1) + b'"}')
blank_lines = _lines(LINE + b" \n" * (1 << 25) + b"\n")
cut_gzip = _lines(gzip.compress(LINE * 50)[:-9], "p.jsonl.gz")
gzip_and_rubbish = _lines(gzip.compress(LINE) + b"rubbish", "p.jsonl.gz")
gzip_members = _lines(gzip.compress(LINE) + gzip.compress(b'{"prompt": "1+2="}\n'), "p.jsonl.gz")
gzip_wrong_sum = _lines(gzip.compress(LINE)[:-8] + bytes(8), "p.jsonl.gz")
plain_as_gzip = _lines(LINE, "p.jsonl.gz")
empty_gzip = _lines(b"", "p.jsonl.gz")
gzip_bomb = _lines(gzip.compress(LINE + bytes(1 << 27)), "p.jsonl.gz")


def zip_as_lines(folder: Path) -> None:
    """A zip archive that is called .jsonl."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("p.jsonl", LINE)
    (folder / "p.jsonl").write_bytes(sink.getvalue())


def pipe(folder: Path) -> None:
    """A named pipe that nobody writes to."""
    os.mkfifo(folder / "p.jsonl")


def zeros(folder: Path) -> None:
    """A link to the device whose zeros do not end."""
    (folder / "p.jsonl").symlink_to("/dev/zero")


def loop(folder: Path) -> None:
    """A link to itself."""
    (folder / "p.jsonl").symlink_to(folder / "p.jsonl")


def directory(folder: Path) -> None:
    """A folder that is called like a file."""
    (folder / "p.jsonl").mkdir()


def file_as_folder(folder: Path) -> None:
    """A file where a folder should be."""
    (folder / "prompts").write_text("")


ENDS = ((1, "<bos>"), (2, "<eos>"))
"""What `ends_texts` adds to a text, before it and after it."""


def chats(folder: Path) -> None:
    """A student with a tokenizer for chats; a template that the case wrote stays."""
    written = folder / "student" / "chat_template.jinja"
    template = written.read_text() if written.exists() else None
    shutil.rmtree(folder / "student")
    make_model(folder / "student", tokenizer="chat")
    if template is not None:
        written.write_text(template)


def ends_texts(folder: Path) -> None:
    """A student whose tokenizer adds start and end to texts, and does so for chats too."""
    chats(folder)
    path = folder / "student" / "tokenizer.json"
    held = json.loads(path.read_text())
    ids = {token: {"id": token, "ids": [number], "tokens": [token]} for number, token in ENDS}
    pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for _, token in ENDS]
    single = [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]]
    held["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": ids,
    }
    path.write_text(json.dumps(held))


def chats_in_parquet(folder: Path) -> None:
    """Chats whose structs Arrow fills with nulls, one with tools and one without."""
    chats(folder)
    user = {"role": "user", "content": "a"}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}
    tools = [{"function": {"name": "look", "description": "b"}}]
    rows = [{"messages": [user, call, {**user, "role": "tool"}], "tools": tools}]
    pq.write_table(pa.Table.from_pylist([*rows, {"messages": [user]}]), folder / "p.parquet")


def pictures_in_parquet(folder: Path) -> None:
    """Chats beside which stand the bytes of pictures."""
    chats(folder)
    rows = [{"messages": [{"role": "user", "content": "a"}], "images": [{"bytes": b"\x89PNG"}]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")


def calls_as_maps(folder: Path) -> None:
    """Calls of tools whose arguments are an Arrow map, which becomes pairs."""
    chats(folder)
    arguments = pa.map_(pa.string(), pa.string())
    function = pa.struct([("name", pa.string()), ("arguments", arguments)])
    turn = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", pa.list_(pa.struct([("function", function)]))),
        ]
    )
    call = {"function": {"name": "look", "arguments": [("a", "b")]}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    table = pa.table({"messages": pa.array([turns], pa.list_(turn))})
    pq.write_table(table, folder / "p.parquet")
