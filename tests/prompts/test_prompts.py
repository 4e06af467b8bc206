"""Tests of prompt files: every mistake with its file and line, ids made once, pinning for ever."""

import gzip
import json
import math
import uuid
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.prompts import encoding
from pipeline.prompts.files import PromptFile, find_prompt_file, read_records
from pipeline.prompts.pinning import prepare_prompts, prompts_key, read_prompts
from pipeline.prompts.records import BadRecord, PromptRecord, parse_record
from pipeline.store.storage import Storage
from schemas.columns import flat_values
from schemas.config.file import parse_config
from schemas.config.run import RunConfig
from schemas.config.storage import StorageSection
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.fingerprint import sequence_digest
from schemas.records.runs import PromptsManifest
from schemas.tables import PROMPTS

Fast: Any = PreTrainedTokenizerFast  # its constructor is untyped

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz 0123456789"
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ ending }}"
)
SECTIONS = """
run = {{ name = {name!r}, root = "store", seed = 0, rounds = 1 }}
student = {{ model = "student" }}
teachers = {{ large = {{ model = "large" }}, math = {{ model = "math" }} }}
score = {{ k = 4 }}
loss = {{ kind = "forward_kl" }}
train = {{ learning_rate = 1e-3, sequences_per_step = 1 }}
[rollout]
prompts_per_round = 1
samples_per_prompt = 1
max_new_tokens = 4
temperature = 1.0
top_p = 1.0
top_k = 0
[prompts]
train = {train!r}
max_tokens = 12
"""


def char_tokenizer(*, template: str | None = None, lower: bool = False, bos: bool = False) -> Any:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if lower:
        backend.normalizer = normalizers.Lowercase()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", VOCABULARY["<bos>"])]
        )
    backend.add_special_tokens(list(SPECIAL))
    backend.decoder = decoders.Fuse()
    tokenizer = Fast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = template
    return tokenizer


def ids_of(text: str, *specials: str) -> list[int]:
    return [VOCABULARY[token] for token in [*specials, *text]]


def config_of(base: Path, train: str, *overrides: str, name: str = "first") -> RunConfig:
    text = SECTIONS.format(name=name, train=train)
    return parse_config(text, where="run.toml", base=base, overrides=overrides)


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


TOKENIZER = char_tokenizer()


@pytest.fixture
def memory() -> Storage:
    return Storage(f"memory://{uuid.uuid4().hex}", StorageSection(retry_s=1.0))


def pin(storage: Storage, path: Path, *overrides: str, tokenizer: Any = None) -> PromptsManifest:
    """Pin a file as the run's training prompts."""
    config = config_of(path.parent, path.name, *overrides)
    return prepare_prompts(storage, config, "train", tokenizer or TOKENIZER)


def rows_of(storage: Storage, manifest: PromptsManifest) -> list[dict[str, Any]]:
    table = read_prompts(storage, manifest)
    assert table.schema == PROMPTS and table.num_rows == manifest.rows
    return list(table.to_pylist())


def refusal(storage: Storage, path: Path, *overrides: str, tokenizer: Any = None) -> str:
    """Return the words of the ConfigError, after which the store must still be empty."""
    with pytest.raises(ConfigError) as caught:
        pin(storage, path, *overrides, tokenizer=tokenizer)
    assert caught.value.exit_code == 2
    assert storage.names("prompts") == set()
    assert not storage.exists(prompts_key("first", "train"))
    return str(caught.value)


# --- what is stored ---


def test_text_ids_and_chats_become_rows_in_the_order_of_the_file(
    memory: Storage, tmp_path: Path
) -> None:
    chat = [{"role": "system", "content": "b"}, {"role": "user", "content": "hi"}]
    path = write_lines(
        tmp_path / "p.jsonl",
        [
            {"prompt": "cab", "reference": "42", "teacher": "math", "weight": 0.5, "topic": "x"},
            {"prompt_ids": [9, 3, 7], "reference": 42, "prompt_id": "mine", "level": 2, "a": None},
            {"messages": chat, "reference": 0.5, "prompt": None},
        ],
    )
    manifest = pin(memory, path, tokenizer=char_tokenizer(template=TEMPLATE))
    chat_ids = [*ids_of("b", "<|system|>"), *ids_of("", "<eos>"), *ids_of("hi", "<|user|>")]
    chat_ids += ids_of("", "<eos>", "<|assistant|>")
    assert rows_of(memory, manifest) == [
        {
            "prompt_id": sequence_digest(ids_of("cab"), ()),
            "prompt_ids": ids_of("cab"),
            "text": "cab",
            "reference": "42",
            "teacher": "math",
            "weight": 0.5,
            "metadata": '{"topic": "x"}',
        },
        {
            "prompt_id": "mine",
            "prompt_ids": [9, 3, 7],
            "text": "c<unk>a",
            "reference": "42",
            "teacher": None,
            "weight": 1.0,
            "metadata": '{"a": null, "level": 2}',
        },
        {
            "prompt_id": sequence_digest(chat_ids, ()),
            "prompt_ids": chat_ids,
            "text": "<|system|>b<eos><|user|>hi<eos><|assistant|>",
            "reference": "0.5",
            "teacher": None,
            "weight": 1.0,
            "metadata": None,
        },
    ]
    assert manifest.skipped == {} and manifest.source == "p.jsonl"
    assert sum(shard.tokens for shard in manifest.shards) == 3 + 3 + len(chat_ids)


def test_ids_that_would_not_survive_decoding_and_encoding_are_kept(
    memory: Storage, tmp_path: Path
) -> None:
    tokenizer = char_tokenizer(lower=True)
    given = ids_of("b", "<unk>", "<unk>", "<pad>")
    assert tokenizer(tokenizer.decode(given, skip_special_tokens=True))["input_ids"] != given
    path = write_lines(tmp_path / "p.jsonl", [{"prompt_ids": given}, {"prompt": "ABC"}])
    rows = rows_of(memory, pin(memory, path, tokenizer=tokenizer))
    assert [row["prompt_ids"] for row in rows] == [given, ids_of("abc")]
    assert rows[1]["text"] == "ABC"  # as the file has it, not as ids read


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.integers(0, len(VOCABULARY) - 1), min_size=1, max_size=12),
        min_size=1,
        max_size=20,
        unique_by=tuple,
    )
)
def test_given_ids_pass_through_unchanged(ids: list[list[int]]) -> None:
    data = "".join(json.dumps({"prompt_ids": row}) + "\n" for row in ids).encode()
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.put("source/p.jsonl", data)
    config = config_of(Path("/"), f"{storage.root}/source/p.jsonl")
    manifest = prepare_prompts(storage, config, "train", TOKENIZER)
    assert [row["prompt_ids"] for row in rows_of(storage, manifest)] == ids


def test_shards_hold_65536_rows_and_keep_the_order_of_the_file(
    memory: Storage, tmp_path: Path
) -> None:
    total, size = 65536 + 700, len(VOCABULARY)
    path = tmp_path / "p.jsonl"
    with path.open("w") as file:
        for n in range(total):
            file.write(f'{{"prompt_ids": [{n % size}, {n // size % size}, {n // size**2}]}}\n')
    manifest = pin(memory, path)
    assert [shard.rows for shard in manifest.shards] == [65536, 700]
    assert [shard.tokens for shard in manifest.shards] == [3 * 65536, 3 * 700]
    ids = flat_values(read_prompts(memory, manifest), "prompt_ids").reshape(total, 3)
    assert (ids @ [1, size, size**2] == range(total)).all()
    for shard in manifest.shards:
        assert shard.key == f"prompts/{shard.sha256}.parquet"


def test_plain_texts_are_tokenised_in_batches(memory: Storage, tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(Fast):  # type: ignore[misc] # its base is untyped
        def __call__(self, texts: Any, **kwargs: Any) -> Any:
            calls.append(len(texts))
            return super().__call__(texts, **kwargs)

    tokenizer = Counting(tokenizer_object=char_tokenizer().backend_tokenizer)
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": f"n {n}"} for n in range(5000)])
    manifest = pin(memory, path, tokenizer=tokenizer)
    assert manifest.rows == 5000 and calls == [4096, 904]


def test_the_same_prompts_make_the_same_objects_on_another_machine(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = write_lines(tmp_path / folder / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
        made.append(pin(Storage(str(tmp_path / folder / "store")), path))
    assert made[0].to_bytes() == made[1].to_bytes()


# --- kinds of file ---


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
    assert f"prompts.train = '{path}'" in message and ".jsonl, .jsonl.gz, .parquet" in message


def test_a_missing_file_names_the_nearest_one(memory: Storage, tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    message = refusal(memory, tmp_path / "promts.jsonl")
    assert f"prompts.train: there is no file {tmp_path / 'promts.jsonl'}" in message
    assert f"did you mean {tmp_path / 'prompts.jsonl'}?" in message
    assert "correct the path" in refusal(memory, tmp_path / "none" / "p.jsonl")


def test_a_folder_in_place_of_a_file_is_refused(memory: Storage, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    assert "prompts.train: cannot read" in refusal(memory, tmp_path / "p.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(memory: Storage, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    assert f"{path} holds no records" in refusal(memory, path, 'prompts.on_error="skip"')


@pytest.mark.parametrize("location", ["ftp://host/p.jsonl", "s3://p.jsonl", "memory://p.jsonl"])
def test_a_url_that_is_no_place_is_refused(memory: Storage, tmp_path: Path, location: str) -> None:
    with pytest.raises(ConfigError, match="is not a place to read from") as caught:
        prepare_prompts(memory, config_of(tmp_path, location), "train", TOKENIZER)
    assert f"prompts.train = {location!r}" in str(caught.value)


def test_a_file_url_and_a_path_are_the_same_file(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    first = pin(memory, path)
    config = config_of(tmp_path, path.as_uri())
    assert prepare_prompts(memory, config, "train", TOKENIZER) == first


def test_prompts_are_read_from_an_object_store(moto_storage: Storage) -> None:
    moto_storage.put("data/prompts.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}\n')
    config = config_of(Path("/"), f"{moto_storage.root}/data/prompts.jsonl")
    manifest = prepare_prompts(moto_storage, config, "train", TOKENIZER)
    assert [row["text"] for row in rows_of(moto_storage, manifest)] == ["a", "b"]
    missing = config_of(Path("/"), f"{moto_storage.root}/data/promts.jsonl", name="other")
    with pytest.raises(ConfigError, match=r"did you mean s3://.*/data/prompts.jsonl\?"):
        prepare_prompts(moto_storage, missing, "train", TOKENIZER)


# --- records that cannot be used ---

USER = {"role": "user", "content": "x"}
BAD: dict[str, tuple[Any, str, str]] = {
    "torn": (b'{"prompt": "x', "malformed_json", "malformed JSON: Unterminated string"),
    "two values": (b"{} {}", "malformed_json", "malformed JSON: Extra data at column 4"),
    "huge number": (b"1" * 5000, "malformed_json", "malformed JSON: "),
    "deep": (b"[" * 200_000, "malformed_json", "malformed JSON: "),
    "latin-1": (b'{"prompt": "\xe9"}', "not_utf8", "not UTF-8: "),
    "utf-16": ('{"prompt": "x"}'.encode("utf-16-le"), "malformed_json", "malformed JSON: "),
    "utf-16 mark": ('{"prompt": "x"}'.encode("utf-16"), "not_utf8", "not UTF-8: "),
    "half a pair": (b'{"prompt": "\\ud800"}', "not_utf8", "'prompt' holds half a surrogate"),
    "half in free": (b'{"prompt": "x", "f": "\\ud800"}', "not_utf8", "'a free column' holds"),
    "list": (["x"], "not_an_object", "expected a JSON object, found ['x']"),
    "text": ("x", "not_an_object", "expected a JSON object, found 'x'"),
    "null": (None, "not_an_object", "expected a JSON object, found None"),
    "none": ({"promt": "x"}, "no_prompt", "expected one of prompt, prompt_ids, messages, found"),
    "null prompt": ({"prompt": None}, "no_prompt", "expected one of prompt, prompt_ids"),
    "several": (
        {"prompt": "x", "messages": [USER]},
        "several_prompts",
        "expected one prompt, found prompt and messages",
    ),
    "number": ({"prompt": 5}, "wrong_type", "expected text in 'prompt', found 5"),
    "long": ({"prompt": [9] * 99}, "wrong_type", "expected text in 'prompt', found [9, 9, "),
    "ids": ({"prompt_ids": "x"}, "wrong_type", "expected a list of whole numbers in"),
    "float id": ({"prompt_ids": [8.0]}, "wrong_type", "in 'prompt_ids', found [8.0]"),
    "true id": ({"prompt_ids": [True]}, "wrong_type", "in 'prompt_ids', found [True]"),
    "null id": ({"prompt_ids": [8, None]}, "wrong_type", "in 'prompt_ids', found [8, None]"),
    "blank": ({"prompt": " "}, "empty", "'prompt' is empty"),
    "no ids": ({"prompt_ids": []}, "empty", "the prompt has no tokens"),
    "no messages": ({"messages": []}, "empty", "'messages' is empty"),
    "too long": (
        {"prompt": "abcdefghijklm"},
        "too_long",
        "the prompt has 13 tokens, prompts.max_tokens is 12",
    ),
    "outside": (
        {"prompt_ids": [0, len(VOCABULARY)]},
        "id_outside_vocabulary",
        f"token id {len(VOCABULARY)} is outside the vocabulary of {len(VOCABULARY)} ids",
    ),
    "negative": ({"prompt_ids": [-1]}, "id_outside_vocabulary", "token id -1 is outside"),
    "beyond 64 bits": ({"prompt_ids": [2**70]}, "id_outside_vocabulary", "token id 11805916"),
    "same text": ({"prompt": "ok"}, "duplicate", "duplicate of line 1: it has the same token ids"),
    "same ids": ({"prompt_ids": ids_of("ok")}, "duplicate", "duplicate of line 1: it has the same"),
    "same name": (
        {"prompt": "x", "prompt_id": "name"},
        "duplicate",
        "duplicate of line 1: it has the same prompt_id",
    ),
    "near teacher": (
        {"prompt": "x", "teacher": "lrge"},
        "unknown_teacher",
        "there is no teacher 'lrge'; did you mean 'large'?",
    ),
    "other teacher": (
        {"prompt": "x", "teacher": "zzz"},
        "unknown_teacher",
        "there is no teacher 'zzz'; known: large, math",
    ),
    "teacher 1": ({"prompt": "x", "teacher": 1}, "wrong_type", "expected text in 'teacher'"),
    "weight 0": ({"prompt": "x", "weight": 0}, "bad_weight", "'weight' is 0, expected a number"),
    "weight -1": ({"prompt": "x", "weight": -1.5}, "bad_weight", "'weight' is -1.5"),
    "weight nan": ({"prompt": "x", "weight": math.nan}, "bad_weight", "'weight' is nan"),
    "weight inf": ({"prompt": "x", "weight": math.inf}, "bad_weight", "'weight' is inf"),
    "weight tiny": ({"prompt": "x", "weight": 1e-60}, "bad_weight", "'weight' is 1e-60"),
    "weight huge": ({"prompt": "x", "weight": 10**400}, "bad_weight", "'weight' is 1000"),
    "weight text": ({"prompt": "x", "weight": "2"}, "wrong_type", "a number in 'weight', found"),
    "weight true": ({"prompt": "x", "weight": True}, "wrong_type", "a number in 'weight', found"),
    "name 7": ({"prompt": "x", "prompt_id": 7}, "wrong_type", "expected text in 'prompt_id'"),
    "no name": ({"prompt": "x", "prompt_id": ""}, "empty", "'prompt_id' is empty"),
    "reference": ({"prompt": "x", "reference": []}, "wrong_type", "text or a number in 'refere"),
    "reference nan": ({"prompt": "x", "reference": math.nan}, "wrong_type", "found nan"),
    "reference true": ({"prompt": "x", "reference": True}, "wrong_type", "found True"),
    "messages": ({"messages": "x"}, "wrong_type", "a list of {role, content} in 'messages'"),
    "message": ({"messages": ["x"]}, "bad_messages", "message 1: expected an object, found 'x'"),
    "no role": (
        {"messages": [USER, {"content": "x"}]},
        "bad_messages",
        "message 2: expected text in 'role', it is missing",
    ),
    "no content": (
        {"messages": [{"role": "user"}]},
        "bad_messages",
        "message 1: expected text in 'content', it is missing",
    ),
    "content 1": (
        {"messages": [{"role": "user", "content": 1}]},
        "bad_messages",
        "message 1: expected text in 'content', found 1",
    ),
    "refused": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "bad_messages",
        "the chat template refuses the messages: no tools here",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_an_error_with_its_line_or_counted_and_left_out(
    memory: Storage, tmp_path: Path, name: str
) -> None:
    record, reason, words = BAD[name]
    good = [{"prompt": "ok", "prompt_id": "name"}, record, {"prompt": "last"}]
    path = write_lines(tmp_path / "p.jsonl", good)
    tokenizer = char_tokenizer(template=TEMPLATE)
    message = refusal(memory, path, tokenizer=tokenizer)
    head, problem, hint = message.splitlines()
    assert head == f"{path}: 1 of 3 records cannot be used (1 {reason}):"
    assert problem.startswith(f"  {path}:2: ") and words in problem
    assert 'set prompts.on_error = "skip"' in hint
    manifest = pin(memory, path, 'prompts.on_error="skip"', tokenizer=tokenizer)
    assert manifest.skipped == {reason: 1}
    assert [row["text"] for row in rows_of(memory, manifest)] == ["ok", "last"]


def test_an_error_lists_five_records_and_counts_all(memory: Storage, tmp_path: Path) -> None:
    records = [{"prompt": "ok"}, *[{"prompt": n} for n in range(6)], {"prompt": ""}]
    path = write_lines(tmp_path / "p.jsonl", records)
    message = refusal(memory, path)
    assert f"{path}: 7 of 8 records cannot be used (6 wrong_type, 1 empty):" in message
    assert [line for line in message.splitlines() if f"  {path}:" in line] == [
        f"  {path}:{n + 2}: expected text in 'prompt', found {n}" for n in range(5)
    ]
    assert "\n  and 2 more\n" in message


def test_each_reason_is_counted_for_itself(
    memory: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [record for record, reason, _ in BAD.values() if reason != "duplicate"]
    path = write_lines(tmp_path / "p.jsonl", [*bad, {"prompt": "ok"}])
    tokenizer = char_tokenizer(template=TEMPLATE)
    manifest = pin(memory, path, 'prompts.on_error="skip"', tokenizer=tokenizer)
    reasons = [reason for _, reason, _ in BAD.values() if reason != "duplicate"]
    assert manifest.skipped == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert manifest.rows == 1
    assert f"{path}: left out {len(bad)} records" in caplog.text


def test_a_file_of_which_nothing_is_left_is_refused(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": ""}, {"prompt": 3}])
    message = refusal(memory, path, 'prompts.on_error="skip"')
    assert "2 of 2 records cannot be used" in message and "nothing is left of it" in message


def test_a_record_that_was_left_out_has_no_duplicates(memory: Storage, tmp_path: Path) -> None:
    records = [{"prompt": "a", "weight": -1}, {"prompt": "a"}, {"prompt_ids": ids_of("a")}]
    path = write_lines(tmp_path / "p.jsonl", records)
    manifest = pin(memory, path, 'prompts.on_error="skip"')
    assert manifest.skipped == {"bad_weight": 1, "duplicate": 1}
    assert [row["text"] for row in rows_of(memory, manifest)] == ["a"]


def test_a_prompt_id_that_equals_a_derived_one_is_a_duplicate(
    memory: Storage, tmp_path: Path
) -> None:
    derived = sequence_digest(ids_of("a"), ())
    records = [{"prompt": "a"}, {"prompt": "b", "prompt_id": derived}]
    path = write_lines(tmp_path / "p.jsonl", records)
    assert "duplicate of line 1: it has the same prompt_id" in refusal(memory, path)


def test_duplicates_are_found_across_chunks(memory: Storage, tmp_path: Path) -> None:
    records = [{"prompt": str(n)} for n in range(encoding.CHUNK_RECORDS + 5)]
    path = write_lines(tmp_path / "p.jsonl", [*records, {"prompt": "17"}])
    assert f"{path}:{len(records) + 1}: duplicate of line 18:" in refusal(memory, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(["prompt", "prompt_ids", "messages", "reference", "teacher", "weight", "x"])


@given(JSON | st.dictionaries(FIELD | st.just("prompt_id"), JSON, max_size=5))
def test_any_json_value_is_a_prompt_or_one_bad_record(value: Any) -> None:
    try:
        record = parse_record(value, teachers=["large"])
    except BadRecord as problem:
        assert problem.reason and str(problem)
        return
    assert isinstance(record, PromptRecord)
    assert 0.0 < record.weight < math.inf
    assert record.metadata is None or isinstance(json.loads(record.metadata), dict)


# --- chats and special tokens ---


def test_chat_variables_reach_the_template(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    tokenizer = char_tokenizer(template=TEMPLATE)
    manifest = pin(memory, path, 'prompts.chat_template_kwargs.ending="z"', tokenizer=tokenizer)
    (row,) = rows_of(memory, manifest)
    assert row["text"] == "<|user|>x<eos><|assistant|>z"


@pytest.mark.parametrize("option", ["tokenize", "truncation", "add_generation_prompt"])
def test_a_chat_variable_that_is_an_option_of_the_call_is_refused(
    memory: Storage, tmp_path: Path, option: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    setting = f"prompts.chat_template_kwargs.{option}=true"
    message = refusal(memory, path, setting, tokenizer=char_tokenizer(template=TEMPLATE))
    assert f"prompts.chat_template_kwargs: {option!r}" in message


def test_chats_need_a_chat_template(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"messages": [USER]}])
    message = refusal(memory, path, 'prompts.on_error="skip"')
    assert "has no chat template" in message and "chat_template.jinja" in message


def test_start_tokens_are_added_on_request_only(memory: Storage, tmp_path: Path) -> None:
    path, tokenizer = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}]), char_tokenizer(bos=True)
    (row,) = rows_of(memory, pin(memory, path, tokenizer=tokenizer))
    assert row["prompt_ids"] == ids_of("a")
    other = Storage(f"memory://{uuid.uuid4().hex}")
    manifest = pin(other, path, "prompts.add_special_tokens=true", tokenizer=tokenizer)
    assert rows_of(other, manifest)[0]["prompt_ids"] == ids_of("a", "<bos>")


def test_a_second_start_token_is_an_error_that_names_it(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "<bos>a"}])
    tokenizer = char_tokenizer(bos=True)
    message = refusal(memory, path, "prompts.add_special_tokens=true", tokenizer=tokenizer)
    assert f"{path}:2: the text begins with '<bos>' and the tokenizer adds another" in message
    assert pin(memory, path, tokenizer=tokenizer).rows == 2  # without it, the text is as it is


# --- pinned for ever ---


def test_a_later_call_takes_the_pinned_prompts_without_tokenising(
    memory: Storage, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    first = pin(memory, path)

    class Idle(Fast):  # type: ignore[misc] # its base is untyped
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("tokenised again")

    idle = Idle(tokenizer_object=TOKENIZER.backend_tokenizer, **TOKENIZER.special_tokens_map)
    assert pin(memory, path, tokenizer=idle) == first
    assert pin(memory, path, 'prompts.on_error="skip"', tokenizer=idle) == first


def test_pinned_prompts_stand_when_their_file_is_gone(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    first = pin(memory, path)
    path.unlink()
    assert pin(memory, path) == first
    assert [row["text"] for row in rows_of(memory, first)] == ["a"]


def test_a_changed_file_is_refused_with_both_digests(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    first = pin(memory, path)
    write_lines(path, [{"prompt": "b"}])
    with pytest.raises(IdentityError, match="pinned at first use") as caught:
        pin(memory, path)
    message = str(caught.value)
    found = find_prompt_file(str(path), key="prompts.train", settings=StorageSection())
    assert found is not None and f"found sha256 {found.sha256}" in message
    assert f"expected {first.source_sha256}" in message and "another run.name" in message
    write_lines(path, [{"prompt": "a"}])
    assert pin(memory, path) == first


@pytest.mark.parametrize("gone", [False, True])
def test_another_tokenizer_is_refused_by_name(memory: Storage, tmp_path: Path, gone: bool) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    pin(memory, path)
    if gone:
        path.unlink()
    with pytest.raises(IdentityError, match="changed since: tokenizer. Undo that"):
        pin(memory, path, tokenizer=char_tokenizer(lower=True))


def test_a_changed_option_is_refused_by_name(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    pin(memory, path)
    with pytest.raises(IdentityError, match="changed since: prompts.max_tokens. Undo that"):
        pin(memory, path, "prompts.max_tokens=11")


def test_another_chat_template_is_refused_where_there_are_chats_only(
    memory: Storage, tmp_path: Path
) -> None:
    old, new = char_tokenizer(template=TEMPLATE), char_tokenizer(template=TEMPLATE + " ")
    text = write_lines(tmp_path / "text.jsonl", [{"prompt": "a"}])
    assert pin(memory, text, tokenizer=old) == pin(memory, text, tokenizer=new)
    chat = write_lines(tmp_path / "chat.jsonl", [{"messages": [USER]}])
    other = Storage(f"memory://{uuid.uuid4().hex}")
    pin(other, chat, tokenizer=old)
    with pytest.raises(IdentityError, match="changed since: chat template. Undo that"):
        pin(other, chat, tokenizer=new)


def test_runs_and_splits_are_pinned_apart(memory: Storage, tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"prompt": "a"}])
    write_lines(tmp_path / "eval.jsonl", [{"prompt": "b", "reference": 1}])
    config = config_of(tmp_path, "train.jsonl", 'prompts.eval="eval.jsonl"')
    train = prepare_prompts(memory, config, "train", TOKENIZER)
    held_out = prepare_prompts(memory, config, "eval", TOKENIZER)
    assert (train.source, held_out.source) == ("train.jsonl", "eval.jsonl")
    assert [row["text"] for row in rows_of(memory, held_out)] == ["b"]
    second = config_of(tmp_path, "eval.jsonl", name="second")
    assert prepare_prompts(memory, second, "train", TOKENIZER).shards == held_out.shards


def test_a_split_without_a_file_is_refused(memory: Storage, tmp_path: Path) -> None:
    config = config_of(tmp_path, "p.jsonl")
    with pytest.raises(ConfigError, match="prompts.eval is not set"):
        prepare_prompts(memory, config, "eval", TOKENIZER)


def test_a_writer_that_lost_the_race_to_another_file_is_refused(
    memory: Storage, tmp_path: Path
) -> None:
    mine = write_lines(tmp_path / "mine.jsonl", [{"prompt": "a"}])
    rivals = write_lines(tmp_path / "theirs.jsonl", [{"prompt": "b"}])
    theirs = pin(Storage(f"memory://{uuid.uuid4().hex}"), rivals)

    class Rival(Storage):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, theirs.to_bytes())  # comes first, always
            return super().create(key, data)

    with pytest.raises(IdentityError, match="pinned at first use"):
        pin(Rival(memory.root), mine)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    file = find_prompt_file(str(path), key="prompts.train", settings=StorageSection())
    assert file is not None
    file.check_unchanged()
    write_lines(path, [{"prompt": "b"}])
    with pytest.raises(ConfigError, match="changed while it was read"):
        file.check_unchanged()


def test_records_are_read_one_by_one(tmp_path: Path) -> None:
    file = PromptFile("many.jsonl", "", b'{"prompt": "a"}\n' * 3 + b"{")
    records = read_records(file)
    assert next(records) == (1, {"prompt": "a"})
    assert [number for number, _ in records] == [2, 3, 4]


def test_a_corrupt_or_missing_shard_is_refused(memory: Storage, tmp_path: Path) -> None:
    manifest = pin(memory, write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}]))
    (shard,) = manifest.shards
    data = memory.read_shard(shard)
    memory.put(shard.key, data[:-1] + b"x")
    with pytest.raises(DataError, match="is corrupt"):
        read_prompts(memory, manifest)
    memory.delete(shard.key)
    with pytest.raises(DataError, match="is missing although a manifest names it"):
        read_prompts(memory, manifest)


def test_a_shard_with_other_rows_than_its_manifest_says_is_refused(
    memory: Storage, tmp_path: Path
) -> None:
    manifest = pin(memory, write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}]))
    lying = manifest.shards[0].model_copy(update={"rows": 2})
    with pytest.raises(DataError, match="has 1 rows, its manifest says 2"):
        read_prompts(memory, manifest.model_copy(update={"shards": (lying,)}))
