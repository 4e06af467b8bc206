"""The chat of a record: messages, tools and documents as the template gets them. Pure.

Promises: a key that is null counts as absent at any depth, and the keys of objects stand in one
order, so that a Parquet file, which fills structs with nulls and gives all rows one order, gives
what the same lines give; only text is passed on.
"""

import json
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipeline.prompts.values import BadRecord, Foreign, encodable, wrong_type
from schemas.foreign import shown
from schemas.strictjson import StrictJSONError, parse_json

Objects = list[dict[str, Any]]

BESIDE = ("tools", "documents", "chat_template_kwargs")
"""Columns beside the messages that the template gets too."""

ORDER = (
    *("role", "type", "function", "id", "title", "name", "description", "content", "text"),
    *("parameters", "arguments", "properties", "required", "return"),
)
"""Keys that come first in an object, in the order in which models have seen them; others follow by
their names."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""

PICTURES = ("images", "image", "videos", "audios")
"""Columns by which other trainers give what is no text."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template gets of a record."""

    messages: Objects
    tools: Objects | None = None
    documents: Objects | None = None
    variables: dict[str, Any] = field(default_factory=dict)


def parse_chat(fields: dict[str, Any]) -> Chat:
    """Return the chat of a record's columns, those that are not null.

    Raises:
        BadRecord: it is no chat of text.
    """
    messages = fields["messages"]
    if not isinstance(messages, list):
        raise wrong_type("messages", "a list of {role, content}", messages)
    if not messages:
        raise BadRecord("empty", "'messages' is empty")
    turns = [_message(turn, f"message {place}") for place, turn in enumerate(messages, 1)]
    if not any(turn["content"].strip() or turn.get("tool_calls") for turn in turns):
        raise BadRecord("empty", "no message says anything")
    _check_system(turns, fields.get("system"))
    variables = fields.get("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        raise wrong_type("chat_template_kwargs", "an object", variables)
    return Chat(
        messages=turns,
        tools=_tools(fields.get("tools")),
        documents=_objects("documents", fields.get("documents")),
        variables=_cleaned(variables, "chat_template_kwargs"),
    )


def check_text_alone(fields: dict[str, Any]) -> None:
    """Make sure that nothing beside a prompt is a picture or a sound.

    Raises:
        BadRecord: there is one, which no template would write.
    """
    for name in PICTURES:
        if fields.get(name):
            raise BadRecord(
                "not_text", f"{name!r} is no text, and opd trains on text alone: remove the column"
            )


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRecord("bad_messages", f"{where}: expected an object, found {shown(message)}")
    turn: dict[str, Any] = _cleaned(message, where)
    _check_calls(turn.get("tool_calls"), where)
    if turn.get("content") is None and turn.get("tool_calls"):
        turn["content"] = ""
    elif isinstance(turn.get("content"), list):
        turn["content"] = _text_of(turn["content"], where)
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            found = f"found {shown(message[key])}" if key in message else "it is missing"
            raise BadRecord("bad_messages", f"{where}: expected text in {key!r}, {found}")
    return turn


def _text_of(parts: list[Any], where: str) -> str:
    """Return the text of content parts: of one, for templates join several in different ways."""
    for number, part in enumerate(parts, 1):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise BadRecord(
                "bad_messages",
                f"{where}: content part {number} is {shown(part if kind is None else kind)}, "
                "expected {type: text, text}: opd trains on text alone",
            )
    if len(parts) != 1:
        raise BadRecord(
            "bad_messages",
            f"{where}: its content has {len(parts)} parts, expected one: write it as one text",
        )
    text: str = parts[0]["text"]
    return text


def _check_calls(calls: object, where: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise BadRecord("bad_messages", f"{where}: expected a list in 'tool_calls'")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            words = f"{where}: expected the name of a function in each of 'tool_calls'"
            raise BadRecord("bad_messages", f"{words}, found {shown(call)}")
        if not isinstance(function.get("arguments", {}), dict | str):
            words = f"{where}: expected an object or JSON text in 'arguments'"
            raise BadRecord("bad_messages", f"{words}, found {shown(function['arguments'])}")


def _check_system(turns: Objects, system: object) -> None:
    """Refuse a system message that stands beside the chat, where no template reads it."""
    if not isinstance(system, str) or not system.strip():
        return
    if turns[0]["role"] != "system" or turns[0]["content"].strip() != system.strip():
        raise BadRecord(
            "bad_messages",
            "'system' stands beside the messages, where the template does not read it: write it "
            "as the first message, or rename the column",
        )


def _tools(value: object) -> Objects | None:
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(encodable(value, "tools").encode())
        except StrictJSONError as error:
            raise BadRecord("wrong_type", f"'tools' is text and no JSON: {error}") from error
    tools = _objects("tools", value)
    for tool in tools or ():
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise wrong_type("tools", "the name of a function in each tool", tool)
        if not isinstance(function.get("parameters", {}), dict):
            raise wrong_type("tools", "an object in 'parameters'", function["parameters"])
    return tools


def _objects(name: str, value: object) -> Objects | None:
    """Return a list of objects without nulls; None where there are none."""
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise wrong_type(name, "a list of objects", value)
    found: Objects = _cleaned(value, name)
    return found


def _cleaned(value: Any, where: str) -> Any:
    """Return a value of JSON without keys that are null, in order, every text one of UTF-8."""
    try:
        clean = _without_nulls(value)
        text = json.dumps(clean, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise BadRecord("bad_messages", f"{where} is nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise BadRecord("bad_messages", f"{where}: {error}") from error
    encodable(text, where)
    return clean


def _place(key: str) -> tuple[int, str]:
    return (ORDER.index(key) if key in ORDER else len(ORDER), key)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        keys = sorted((key for key in value if value[key] is not None), key=_place)
        return {key: _without_nulls(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [_without_nulls(part) for part in value]
    if isinstance(value, bytes):
        raise ValueError("it holds bytes, expected text")
    return str(value) if isinstance(value, Foreign | Decimal) else value
