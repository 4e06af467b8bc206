"""Records that cannot be used: each an error with its line, or counted and left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prompts.records import PromptRecord, parse_record
from pipeline.prompts.values import BadRecord
from pipeline.store.storage import Storage
from tests.support.promptfiles import (
    TEMPLATE,
    USER,
    VOCABULARY,
    char_tokenizer,
    ids_of,
    pin,
    refusal,
    rows_of,
    write_lines,
)

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
    assert "max_tokens" not in message
    write_lines(path, [{"prompt": "a" * 5000}])
    assert "A larger prompts.max_tokens takes" in refusal(memory, path)
    assert "2 of 2 records cannot be used" in message and "nothing is left of it" in message


def test_a_record_that_was_left_out_has_no_duplicates(memory: Storage, tmp_path: Path) -> None:
    records = [{"prompt": "a", "weight": -1}, {"prompt": "a"}, {"prompt_ids": ids_of("a")}]
    path = write_lines(tmp_path / "p.jsonl", records)
    manifest = pin(memory, path, 'prompts.on_error="skip"')
    assert manifest.skipped == {"bad_weight": 1, "duplicate": 1}
    assert [row["text"] for row in rows_of(memory, manifest)] == ["a"]


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
