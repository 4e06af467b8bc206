"""Prompts become rows of token ids: texts, ids and chats, each prompt once."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts import reading
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.store.storage import Storage
from schemas.columns import flat_values
from schemas.fingerprint import sequence_digest
from tests.support.promptfiles import (
    TEMPLATE,
    TOKENIZER,
    USER,
    VOCABULARY,
    Fast,
    char_tokenizer,
    ids_of,
    pin,
    refusal,
    rows_of,
    run_of,
    write_lines,
)


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
    run = run_of(storage, Path("/"), f"{storage.root}/source/p.jsonl")
    manifest = prepare_prompts(run, "train", TOKENIZER)
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


def test_a_prompt_id_that_equals_a_derived_one_is_a_duplicate(
    memory: Storage, tmp_path: Path
) -> None:
    derived = sequence_digest(ids_of("a"), ())
    records = [{"prompt": "a"}, {"prompt": "b", "prompt_id": derived}]
    path = write_lines(tmp_path / "p.jsonl", records)
    assert "duplicate of line 1: it has the same prompt_id" in refusal(memory, path)


def test_duplicates_are_found_across_chunks(memory: Storage, tmp_path: Path) -> None:
    records = [{"prompt": str(n)} for n in range(reading.CHUNK_RECORDS + 5)]
    path = write_lines(tmp_path / "p.jsonl", [*records, {"prompt": "17"}])
    assert f"{path}:{len(records) + 1}: duplicate of line 18:" in refusal(memory, path)


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
