"""`opd prompts show`: a record, its text and its ids, pinned or not, and nothing stored."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.prompts.preview import Preview, preview_prompt
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.promptfiles import (
    TEMPLATE,
    USER,
    char_tokenizer,
    ids_of,
    pin,
    run_of,
    write_lines,
    write_parquet,
)

CHATS = char_tokenizer(template=TEMPLATE)
ANSWERED = {"messages": [USER, {"role": "assistant", "content": "y"}]}


def shown(
    storage: Storage, path: Path, number: int | None, *overrides: str, tokenizer: Any = CHATS
) -> Preview:
    run = run_of(storage, path.parent, path.name, *overrides)
    return preview_prompt(run, "train", tokenizer, number)


def ids(preview: Preview) -> list[int]:
    return [token.id for token in preview.tokens]


def test_a_record_is_shown_before_anything_is_pinned(memory: Storage, tmp_path: Path) -> None:
    record = {"messages": [USER], "level": 2}
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "ab"}, {"prompt": 1}, record])
    found = shown(memory, path, 3)
    assert found.record == record and found.place == f"{path}:3" and not found.pinned
    assert found.text == "<|user|>x<eos><|assistant|>"
    assert [(t.piece, t.text, t.special) for t in found.tokens] == [
        ("<|user|>", "<|user|>", True),
        ("x", "x", False),
        ("<eos>", "<eos>", True),
        ("<|assistant|>", "<|assistant|>", True),
    ]
    assert found.notes == ("not pinned yet: the first stage pins these ids",)
    assert ids(shown(memory, path, None)) == ids_of("ab")
    assert memory.names("") == set()


def test_the_pinned_ids_are_shown_and_a_note_where_todays_are_others(
    memory: Storage, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"messages": [USER]}])
    pin(memory, path, tokenizer=CHATS)
    found = shown(memory, path, 2)
    assert found.pinned and found.notes == ()
    other = char_tokenizer(template="<bos>" + TEMPLATE)
    later = shown(memory, path, 2, tokenizer=other)
    assert later.pinned and ids(later) == ids(found) and later.text == found.text
    assert later.notes == (
        "these ids were pinned; made anew today, the record would become other ids",
    )


def test_pinned_prompts_that_are_left_out_today_are_shown(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [ANSWERED])
    with pytest.raises(ConfigError, match=r"1 is left out as a prompt \(answered\): the chat ends"):
        shown(memory, path, 1)
    pin(memory, path, 'prompts.answered="continue"', tokenizer=CHATS)
    found = shown(memory, path, 1)
    assert found.text.endswith("<|assistant|>y") and "would be left out: the chat" in found.notes[0]


def test_a_record_is_found_among_pinned_ones_of_which_some_are_left_out(
    memory: Storage, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": 1}, {"prompt": "a"}, {"prompt": "b"}])
    skip = 'prompts.on_error="skip"'
    pin(memory, path, skip, tokenizer=CHATS)
    assert shown(memory, path, 3, skip).pinned
    write_lines(path, [{"prompt": "c"}])
    found = shown(memory, path, 1)
    assert not found.pinned and "not among the run's pinned prompts" in found.notes[0]


def test_a_place_without_a_record_is_told(memory: Storage, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="p.jsonl:2 is blank: it holds no record"):
        shown(memory, path, 2)
    with pytest.raises(ConfigError, match="no line 4: it has 2 records, the last one in line 3"):
        shown(memory, path, 4)
    with pytest.raises(ConfigError, match="duplicate of line 1"):
        shown(memory, path, 3)
    table = write_parquet(tmp_path / "p.parquet", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match="no row 2: it has 1 records, the last one in row 1"):
        shown(memory, table, 2)
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no records"):
        shown(memory, path, None)


def test_ids_of_the_file_are_shown_as_text(memory: Storage, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt_ids": ids_of("ab")}])
    assert shown(memory, path, 1).text == "ab"


def test_a_template_that_writes_the_date_is_noted(memory: Storage, tmp_path: Path) -> None:
    dated = char_tokenizer(template="{% set today = strftime_now('%Y') %}" + TEMPLATE)
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    assert "today's date" in json.dumps(shown(memory, path, 1, tokenizer=dated).notes)
