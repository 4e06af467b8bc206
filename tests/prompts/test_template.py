"""A chat's prompt says what its record says: no second answer, no lost tool, nothing left out."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from pipeline.prompts.pinning import read_prompts
from pipeline.store.storage import Storage
from schemas.errors import IdentityError
from tests.support.promptfiles import (
    TEMPLATE,
    USER,
    char_tokenizer,
    ids_of,
    pin,
    refusal,
    write_lines,
)

LONG = "prompts.max_tokens=400"
ANSWER = {"role": "assistant", "content": "ok"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
REPLY = {"role": "tool", "content": "7", "tool_call_id": "a"}
TOOLS = (
    "{% for t in tools or [] %}<|system|>{{ t.function.name }}<eos>{% endfor %}"
    "{% for d in documents or [] %}<|system|>{{ d.text }}<eos>{% endfor %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = TEMPLATE.replace("<|{{", "{% if m.role != 'system' %}<|{{").replace(
    "<eos>{% endfor", "<eos>{% endif %}{% endfor"
)


def fresh() -> Storage:
    return Storage(f"memory://{uuid.uuid4().hex}")


def texts(path: Path, *overrides: str, template: str = TEMPLATE) -> list[str]:
    """Return the texts that a file's records become."""
    storage = fresh()
    manifest = pin(storage, path, LONG, *overrides, tokenizer=char_tokenizer(template=template))
    return [str(text) for text in read_prompts(storage, manifest)["text"].to_pylist()]


def told(path: Path, *overrides: str, template: str = TEMPLATE) -> str:
    """Return why a file is refused."""
    return refusal(fresh(), path, LONG, *overrides, tokenizer=char_tokenizer(template=template))


# --- answered chats ---


@pytest.mark.parametrize("role", ["assistant", "model", "gpt"])
def test_a_chat_that_ends_with_its_answer_is_refused_and_names_the_key(
    tmp_path: Path, role: str
) -> None:
    chat = [USER, {"role": role, "content": "ok"}]
    path = write_lines(tmp_path / "p.jsonl", [{"messages": chat}])
    words = told(path)
    assert "1 answered" in words and 'prompts.answered = "drop"' in words and '"continue"' in words


def test_answers_at_the_end_are_dropped_on_request(tmp_path: Path) -> None:
    chats = [[USER, ANSWER], [USER, ANSWER, {"role": "user", "content": "y"}, ANSWER, ANSWER]]
    path = write_lines(tmp_path / "p.jsonl", [{"messages": chat} for chat in chats])
    assert texts(path, 'prompts.answered="drop"') == [
        "<|user|>x<eos><|assistant|>",
        "<|user|>x<eos><|assistant|>ok<eos><|user|>y<eos><|assistant|>",
    ]
    alone = write_lines(tmp_path / "alone.jsonl", [{"messages": [ANSWER]}])
    assert "nothing is left of the chat" in told(alone, 'prompts.answered="drop"')


def test_an_answer_is_continued_on_request_and_no_end_is_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER, ANSWER]}, {"messages": [USER]}])
    assert texts(path, 'prompts.answered="continue"') == [
        "<|user|>x<eos><|assistant|>ok",
        "<|user|>x<eos><|assistant|>",
    ]
    call = write_lines(tmp_path / "call.jsonl", [{"messages": [USER, CALL]}])
    words = told(call, 'prompts.answered="continue"', template=TOOLS)
    assert "the chat ends with a call of a tool" in words


def test_a_chat_may_end_with_a_tool_or_a_system_message(tmp_path: Path) -> None:
    ends = [[USER, CALL, REPLY], [USER, {"role": "system", "content": "s"}]]
    path = write_lines(tmp_path / "p.jsonl", [{"messages": chat} for chat in ends])
    assert texts(path, template=TOOLS) == [
        "<|user|>x<eos><|assistant|>look<eos><|user|>7<eos><|assistant|>",
        "<|user|>x<eos><|system|>s<eos><|assistant|>",
    ]


def test_what_becomes_of_answers_is_pinned_with_chats_alone(
    memory: Storage, tmp_path: Path
) -> None:
    tokenizer = char_tokenizer(template=TEMPLATE)
    text = write_lines(tmp_path / "text.jsonl", [{"prompt": "a"}])
    drop = 'prompts.answered="drop"'
    assert pin(fresh(), text, drop).fingerprint == pin(fresh(), text).fingerprint
    chat = write_lines(tmp_path / "chat.jsonl", [{"messages": [USER]}])
    pin(memory, chat, drop, tokenizer=tokenizer)
    with pytest.raises(IdentityError, match="changed since: prompts.answered. Undo that"):
        pin(memory, chat, tokenizer=tokenizer)


# --- tools and documents ---


def test_tools_and_documents_beside_messages_reach_the_template(tmp_path: Path) -> None:
    record = {"messages": [USER], "tools": [TOOL], "documents": [{"text": "doc"}]}
    as_text = {"messages": [USER], "tools": '[{"function": {"name": "other"}}]'}
    path = write_lines(tmp_path / "p.jsonl", [record, as_text, {"messages": [USER], "tools": []}])
    assert texts(path, template=TOOLS) == [
        "<|system|>look<eos><|system|>doc<eos><|user|>x<eos><|assistant|>",
        "<|system|>other<eos><|user|>x<eos><|assistant|>",
        "<|user|>x<eos><|assistant|>",
    ]


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"tools": [TOOL]}, "leaves out the tool 'look'"),
        ({"documents": [{"text": "d"}]}, "leaves out 'documents'"),
        ({"messages": [USER, CALL, REPLY]}, "leaves out the call of 'look'"),
        ({"messages": [{"role": "user", "content": "look"}], "tools": [TOOL]}, "out 'tools'"),
        ({"tools": "a hammer"}, "'tools' is text and no JSON"),
        ({"tools": [{"function": {"parameters": {}}}]}, "the name of a function"),
        ({"tools": [{"name": "look", "parameters": [["a", 1]]}]}, "an object in 'parameters'"),
        ({"tools": {"name": "look"}}, "expected a list of objects in 'tools'"),
        ({"documents": ["d"]}, "expected a list of objects in 'documents'"),
        ({"system": "Be brief."}, "'system' stands beside the messages"),
        ({"images": ["cat.png"]}, "'images' is no text"),
        ({"chat_template_kwargs": {"tokenize": False}}, "'tokenize' is an option"),
        ({"chat_template_kwargs": [1]}, "an object in 'chat_template_kwargs'"),
    ],
)
def test_what_stands_beside_messages_is_never_lost(
    tmp_path: Path, beside: dict[str, Any], words: str
) -> None:
    template = (
        TEMPLATE[: TEMPLATE.index("{% if m.role")] + TEMPLATE[TEMPLATE.index("<|{{ m.role") :]
    )
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER], **beside}])
    assert words in told(path, template=template)


def test_a_record_has_variables_of_its_own(tmp_path: Path) -> None:
    record = {"messages": [USER], "chat_template_kwargs": {"ending": "z"}}
    path = write_lines(tmp_path / "p.jsonl", [record])
    assert texts(path, 'prompts.chat_template_kwargs.ending="y"') == [
        "<|user|>x<eos><|assistant|>z"
    ]


# --- what a template does to messages ---


def test_a_template_that_leaves_a_message_out_is_told_for_each_form_of_chat(
    tmp_path: Path,
) -> None:
    system = {"role": "system", "content": "x"}  # says nothing that the user does not
    chats = [[USER], [system, USER], [USER, ANSWER, USER]]
    path = write_lines(tmp_path / "p.jsonl", [{"messages": chat} for chat in chats])
    words = told(path, template=NO_SYSTEM)
    assert "1 of 3 records cannot be used (1 left_out)" in words
    assert f"{path}:2: the chat template leaves out message 1, of 'system'" in words


def test_a_template_may_trim_move_or_quote_what_it_writes(tmp_path: Path) -> None:
    trims = TEMPLATE.replace("m.content", "m.content | trim | tojson")
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": " a "}]}])
    assert texts(path, template=trims) == ["<|user|><unk>a<unk><eos><|assistant|>"]


def test_a_role_that_no_template_names_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [{"role": "human", "content": "x"}]}])
    assert "message 1: its role is 'human'" in told(path)
    named = texts(path, template="{# 'human' #}" + TEMPLATE)
    assert [text.endswith("x<eos><|assistant|>") for text in named] == [True]


def test_a_variable_that_the_template_does_not_have_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    words = told(path, "prompts.chat_template_kwargs.endng=true", 'prompts.on_error="skip"')
    assert "has no variable 'endng'; did you mean 'ending'?" in words


@pytest.mark.parametrize("ending", ["<eos>", "<eos> "])
def test_a_template_that_ends_the_prompt_as_a_text_ends_is_refused(
    tmp_path: Path, ending: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    assert "1 end_token" in told(path, template=TEMPLATE + ending)


def test_a_start_that_is_written_twice_is_refused_in_chats_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    assert "1 double_start" in told(path, template="<bos><bos>" + TEMPLATE)
    assert texts(path, template="<bos>" + TEMPLATE) == ["<bos><|user|>x<eos><|assistant|>"]


def test_a_template_that_writes_the_date_is_told_when_it_is_pinned(
    memory: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dated = "{% set today = strftime_now('%Y') %}" + TEMPLATE
    pin(memory, write_lines(tmp_path / "t.jsonl", [{"prompt": "a"}]))
    assert "date" not in caplog.text
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [USER]}])
    pin(fresh(), path, tokenizer=char_tokenizer(template=dated))
    assert "the chat template writes today's date" in caplog.text


# --- start tokens ---


@pytest.mark.parametrize(
    ("single", "start"), [("<bos> $A <eos>", ["<bos>"]), ("$A <eos>", []), ("<bos> $A", ["<bos>"])]
)
def test_a_tokenizer_that_adds_an_end_too_adds_its_start_alone(
    tmp_path: Path, single: str, start: list[str]
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer, storage = char_tokenizer(), fresh()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "ab"}, {"prompt": "c<eos>"}])
    manifest = pin(storage, path, "prompts.add_special_tokens=true", tokenizer=tokenizer)
    assert read_prompts(storage, manifest)["prompt_ids"].to_pylist() == [
        [*ids_of("", *start), *ids_of("ab")],
        [*ids_of("", *start), *ids_of("c"), *ids_of("", "<eos>")],  # as the text says
    ]
