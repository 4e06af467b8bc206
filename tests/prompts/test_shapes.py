"""Shapes in which other trainers keep prompts: what is sure is understood, the rest is told."""

import io
import json
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts.chats import Chat, parse_chat
from pipeline.prompts.files import PromptFile
from pipeline.prompts.ids import Encoder
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.records import PromptRecord, parse_record
from pipeline.prompts.values import BadRecord
from schemas.config.prompts import PromptsSection
from tests.support.promptfiles import USER, VOCABULARY, char_tokenizer

CALL_TEXT = json.dumps({"name": "look", "arguments": {"at": "b"}})
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"at": "b"}}}]


def parsed(record: Any) -> PromptRecord:
    return parse_record(record, teachers=["main"])


def messages_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    chat = parsed(record).value
    assert isinstance(chat, Chat)
    return chat.messages


def problem(record: dict[str, Any]) -> str:
    with pytest.raises(BadRecord) as caught:
        parsed(record)
    return f"{caught.value.reason}: {caught.value}"


def test_a_prompt_that_is_a_chat_is_one() -> None:
    record = parsed({"prompt": [USER], "completion": [{"role": "assistant", "content": "y"}]})
    assert record.value == Chat([USER]) and record.reference is None
    assert json.loads(record.metadata or "") == {
        "completion": [{"role": "assistant", "content": "y"}]
    }


@pytest.mark.parametrize(
    ("graded", "reference"),
    [
        ({"style": "rule", "ground_truth": "42"}, "42"),
        ({"ground_truth": 42}, "42"),
        ({"ground_truth": {"target": 3}}, None),
        ({"style": "model"}, None),
        (None, None),
    ],
)
def test_a_truth_of_verl_is_the_reference_where_it_is_plain(graded: Any, reference: Any) -> None:
    record = parsed({"prompt": [USER], "reward_model": graded, "extra_info": {"index": 1}})
    assert record.reference == reference
    assert "extra_info" in json.loads(record.metadata or "")
    text = {"prompt": "text", "reward_model": graded}
    assert parsed(text).reference is None  # a record of ours stays as it was


def test_conversations_of_sharegpt_are_messages() -> None:
    turns = [
        {"from": "human", "value": "x"},
        {"from": "gpt", "value": "a", "weight": None},
        {"from": "function_call", "value": CALL_TEXT},
        {"from": "observation", "value": "7"},
        {"from": "function", "value": "8"},
    ]
    assert messages_of({"conversations": turns, "system": "s"}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": "7"},
        {"role": "tool", "content": "8"},
    ]
    assert messages_of({"conversation": [USER]}) == [USER]
    assert messages_of({"messages": turns[:1]}) == [{"role": "user", "content": "x"}]


def test_one_part_of_text_is_text_and_a_call_needs_none() -> None:
    part = {"type": "text", "text": "x", "image_url": None}
    assert messages_of({"messages": [{"role": "user", "content": [part]}]}) == [USER]
    call = {"role": "assistant", "tool_calls": CALL, "content": None, "reasoning_content": "hm"}
    assert messages_of({"messages": [call]}) == [
        {"role": "assistant", "tool_calls": CALL, "reasoning_content": "hm", "content": ""}
    ]


TEXT = {"type": "text", "text": "x"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two parts": ({"content": [TEXT, TEXT]}, "has 2 parts, expected one"),
    "no part": ({"content": []}, "has 0 parts, expected one"),
    "picture": ({"content": [TEXT, {"type": "image_url", "image_url": {}}]}, "part 2 is 'image_u"),
    "part of text": ({"content": ["x"]}, "part 1 is 'x'"),
    "bytes": ({"content": "x", "raw": b"x"}, "it holds bytes"),
    "calls": ({"content": "x", "tool_calls": "look"}, "expected a list in 'tool_calls'"),
    "no name": ({"content": "x", "tool_calls": [{"id": "1"}]}, "the name of a function"),
    "pairs": (
        {"content": "x", "tool_calls": [{"function": {"name": "a", "arguments": [["b", 1]]}}]},
        "an object or JSON text in 'arguments'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_that_no_template_would_write_right_is_refused(name: str) -> None:
    message, words = REFUSED[name]
    found = problem({"messages": [USER, {"role": "assistant", **message}]})
    assert found.startswith("bad_messages: message 2") and words in found


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "preferences": ({"chosen": [USER], "rejected": [USER]}, "preference data: give the messages"),
    "batch": ({"custom_id": "1", "body": {"messages": [USER]}}, "OpenAI's API: give what is in"),
    "alpaca": ({"instruction": "x", "input": "", "output": "y"}, "alpaca's form"),
    "question": ({"question": "x", "answer": "y"}, "rename 'question' to 'prompt'"),
    "problem": ({"problem": "x", "solution": "y"}, "rename 'problem' to 'prompt'"),
    "query": ({"query": "x", "response": "y"}, "rename 'query' to 'prompt'"),
    "input": ({"input": "x", "target": "y"}, "rename 'input' to 'prompt'"),
    "text": ({"text": "x"}, "rename 'text' to 'prompt'"),
    "conversation": ({"conversations": "x"}, "'conversations' are no list"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_shape_that_is_not_sure_is_refused_with_what_to_do(name: str) -> None:
    record, words = OTHERS[name]
    found = problem(record)
    assert found.startswith("no_prompt: expected one of prompt, prompt_ids, messages, found [")
    assert words in found and "write {role, content} into 'messages'" in found


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"from": "narrator", "value": "x"}, "'from' is 'narrator', expected one of human"),
        ({"from": "function", "value": CALL_TEXT}, "'from' is 'function', expected one of"),
        ({"from": "function_call", "value": "look"}, "expected JSON with name and arguments"),
        ({"from": ["human"], "value": "x"}, "'from' is ['human']"),
        ({"from": "human"}, "expected text in 'content', found None"),
    ],
)
def test_a_turn_by_nobody_that_is_known_is_refused(turn: dict[str, Any], words: str) -> None:
    assert words in problem({"conversations": [turn]})


@pytest.mark.parametrize("text", ['[{"role": "user"}]', " [ {'from': 'human'}]"])
def test_a_chat_that_is_written_as_text_is_no_prompt(text: str) -> None:
    assert "text that holds a chat as JSON" in problem({"prompt": text})


def test_a_line_that_is_a_chat_says_where_it_belongs() -> None:
    with pytest.raises(BadRecord, match='write a chat as {"messages"'):
        parse_record([USER], teachers=["main"])


def test_messages_that_say_nothing_are_empty() -> None:
    assert problem({"messages": [{"role": "user", "content": " "}]}).startswith("empty: ")


def test_a_record_of_ours_keeps_its_columns_whatever_they_are_called() -> None:
    record = {"prompt": "a", "conversations": [USER], "chosen": "x", "instruction": "y", "tools": 1}
    found = parsed(record)
    assert found.value == "a" and set(json.loads(found.metadata or "")) == set(record) - {"prompt"}


# --- nulls of Arrow ---

WORD = st.text("abc", min_size=1, max_size=3)
TOOL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": WORD}, optional={"about": WORD, "kind": WORD})}
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": WORD}, optional={"arguments": st.fixed_dictionaries({"a": WORD})}
            )
        },
        optional={"id": WORD},
    ),
    min_size=1,
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool"]), "content": WORD},
    optional={"name": WORD, "tool_calls": CALLS},
)
RECORD = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    optional={"tools": st.lists(TOOL, min_size=1, max_size=2)},
)
WHOLE = {
    "messages": [
        {
            "role": "user",
            "content": "a",
            "name": "a",
            "tool_calls": [{"function": {"name": "a", "arguments": {"a": "a"}}, "id": "a"}],
        }
    ],
    "tools": [{"function": {"name": "a", "about": "a", "kind": "a"}}],
}
"""A record with every key, so that all columns have their type."""

DUMPS = char_tokenizer(
    template="{{ tools | tojson }}{{ messages | tojson }}{% if add_generation_prompt %}a{% endif %}"
)


def turned(value: Any) -> Any:
    """Return a value of JSON with the keys of each object the other way round."""
    if isinstance(value, list):
        return [turned(part) for part in value]
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return value


def test_keys_of_objects_stand_in_the_order_that_models_have_seen() -> None:
    schema = {"required": ["b"], "properties": {"b": {}, "a": {}}, "type": "object"}
    look = {"parameters": schema, "strict": True, "name": "look", "description": "Look."}
    record = {"messages": [USER], "tools": [{"function": look, "type": "function"}]}
    assert json.dumps(parse_chat(record).tools) == (
        '[{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": '
        '{"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}, "strict": true}}]'
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=4))
def test_lines_and_parquet_of_the_same_records_give_the_same_ids(records: list[Any]) -> None:
    section = PromptsSection(train="p", max_tokens=4000)
    # a Parquet file has one order of keys for all of its rows, and lines have their own
    records = [json.loads(json.dumps(record, sort_keys=True)) for record in [WHOLE, *records]]
    lines = "".join(json.dumps(turned(record)) + "\n" for record in records).encode()
    table = pa.Table.from_pylist(records)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    made = []
    for name, data in (("p.jsonl", lines), ("p.parquet", sink.getvalue())):
        (chunk,) = record_chunks(PromptFile(name, uuid.uuid4().hex, data))
        made.append(Encoder(DUMPS, section).ids([parsed(value) for _, value in chunk]))
    assert made[0] == made[1]
    assert all(isinstance(ids, list) and max(ids) < len(VOCABULARY) for ids in made[0])
