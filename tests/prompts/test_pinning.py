"""Prompts are pinned for ever: a later call takes them, and what changed is refused."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from pipeline.prompts.files import find_prompt_file
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError, IdentityError
from tests.support.promptfiles import (
    CONFIG,
    TEMPLATE,
    TOKENIZER,
    USER,
    Fast,
    char_tokenizer,
    pin,
    rows_of,
    run_of,
    write_lines,
)


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
    found = find_prompt_file(str(path), key="prompts.train", config=CONFIG)
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
    run = run_of(memory, tmp_path, "train.jsonl", 'prompts.eval="eval.jsonl"')
    train = prepare_prompts(run, "train", TOKENIZER)
    held_out = prepare_prompts(run, "eval", TOKENIZER)
    assert (train.source, held_out.source) == ("train.jsonl", "eval.jsonl")
    assert [row["text"] for row in rows_of(memory, held_out)] == ["b"]
    second = run_of(memory, tmp_path, "eval.jsonl", name="second")
    assert prepare_prompts(second, "train", TOKENIZER).shards == held_out.shards


def test_a_split_without_a_file_is_refused(memory: Storage, tmp_path: Path) -> None:
    run = run_of(memory, tmp_path, "p.jsonl")
    with pytest.raises(ConfigError, match="prompts.eval is not set"):
        prepare_prompts(run, "eval", TOKENIZER)


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
    with pytest.raises(DataError, match="has 1 rows, its record says 2"):
        read_prompts(memory, manifest.model_copy(update={"shards": (lying,)}))
