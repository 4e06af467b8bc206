"""Shapes in which other trainers keep prompts, and what each of them is in ours. Pure.

Promises: what is sure is renamed, and nothing else: a record that has one of our columns keeps it
as it is.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.prompts.values import BadRecord
from schemas.foreign import shown
from schemas.strictjson import StrictJSONError, parse_json

KINDS = ("prompt", "prompt_ids", "messages")
"""Columns that hold a prompt; a record has exactly one of them."""

CHAT_COLUMNS = ("conversations", "conversation")
"""Other names of `messages`."""

SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bard", "bing", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    "system": "system",
}
"""Who speaks in ShareGPT's form → role of the message."""

CALL = "function_call"
"""The speaker of a ShareGPT turn that is a call of a tool."""

ELSEWHERE = (
    (("chosen", "rejected"), "preference data: give the messages before the answers as 'messages'"),
    (("body",), "a request of OpenAI's API: give what is in its 'body' as the record"),
    (("instruction",), "alpaca's form: write its instruction and input as one 'prompt' text"),
    (("input", "preferred_output"), "preference data: give its 'input' as the record"),
    (("conversations",), "its 'conversations' are no list: give a list of {role, content}"),
    (("conversation",), "its 'conversation' is no list: give a list of {role, content}"),
    (("question",), "rename 'question' to 'prompt'"),
    (("problem",), "rename 'problem' to 'prompt'"),
    (("query",), "rename 'query' to 'prompt'"),
    (("inputs",), "rename 'inputs' to 'prompt'"),
    (("input",), "rename 'input' to 'prompt'"),
    (("text",), "rename 'text' to 'prompt' if the answer is to begin where it ends"),
)
"""Columns of other forms → what to do about them; the first that a record has counts."""


def expected_shape(names: Any) -> str:
    """Return what to do about a record with these columns, as the end of a message."""
    found = next((words for columns, words in ELSEWHERE if set(columns) <= set(names)), None)
    return "" if found is None else f"; {found}, or write {{role, content}} into 'messages'"


def renamed(record: object, columns: Mapping[str, str]) -> object:
    """Return a record whose columns have our names.

    Args:
        record: any JSON value.
        columns: our name → the file's.

    Raises:
        BadRecord: it has a column of our name beside the one that is to have it.
    """
    if not columns or not isinstance(record, dict):
        return record
    ours = {theirs: name for name, theirs in columns.items()}
    found: dict[str, Any] = {}
    for column, part in record.items():
        name = ours.get(str(column), str(column))
        if part is not None and found.get(name) is not None:
            raise BadRecord(
                "column_taken",
                f"prompts.columns takes {shown(columns[name])} for {name!r}, and the record has a "
                f"{name!r} of its own: leave one of them out",
            )
        if part is not None or name not in found:
            found[name] = part
    return found


def in_our_shape(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its chat, whatever other trainers call it, as `messages`.

    Raises:
        BadRecord: a turn of it is by nobody that is known.
    """
    fields = {name for name, value in record.items() if value is not None}
    if "messages" not in fields and _is_chat(record.get("prompt")):
        record = _verl(record)
    elif fields.isdisjoint(KINDS):
        named = next((name for name in CHAT_COLUMNS if isinstance(record.get(name), list)), None)
        record = record if named is None else _conversation(record, named)
    turns = record.get("messages")
    if not isinstance(turns, list) or not any(map(_is_turn, turns)):
        return record
    spoken = [_message(turn, f"message {place}") for place, turn in enumerate(turns, 1)]
    return {**record, "messages": spoken}


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _verl(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose `prompt` is a chat, as TRL and verl write it."""
    ours = {name: value for name, value in record.items() if name != "prompt"}
    graded = record.get("reward_model")
    truth = graded.get("ground_truth") if isinstance(graded, dict) else None
    plain = isinstance(truth, str | int | float) and not isinstance(truth, bool)
    if plain and ours.get("reference") is None:
        ours["reference"] = truth
    return {**ours, "messages": record["prompt"]}


def _conversation(record: dict[str, Any], named: str) -> dict[str, Any]:
    """Return a record of ShareGPT's form; its `system` column is the first message."""
    ours = {name: value for name, value in record.items() if name not in (named, "system")}
    turns, system = record[named], record.get("system")
    if isinstance(system, str) and system.strip():
        turns = [{"role": "system", "content": system}, *turns]
    elif system is not None and system != "":
        ours["system"] = system
    return {**ours, "messages": turns}


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and "from" in turn and turn.get("role") is None


def _message(turn: Any, where: str) -> Any:
    """Return a turn of ShareGPT's form as a message; anything else as it is."""
    if not _is_turn(turn):
        return turn
    speaker, value = turn["from"], turn.get("value")
    further = {name: part for name, part in turn.items() if name not in ("from", "value", "role")}
    call = _call(value)
    if speaker == CALL:
        if call is None:
            raise BadRecord(
                "bad_messages",
                f"{where}: expected JSON with name and arguments in its 'value', found "
                f"{shown(value)}",
            )
        calls = [{"type": "function", "function": call}]
        return {"role": "assistant", "content": "", "tool_calls": calls, **further}
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None or (speaker == "function" and call is not None):
        raise BadRecord(
            "bad_messages",
            f"{where}: 'from' is {shown(speaker)}, expected one of {', '.join(SPEAKERS)} for text "
            f"and {CALL} for a call of a tool",
        )
    return {"role": role, "content": value, **further}


def _call(value: object) -> dict[str, Any] | None:
    """Return the call of a tool that a text is, None where it is none."""
    if not isinstance(value, str):
        return None
    try:
        found = parse_json(value.encode("utf-8", "surrogatepass"))
    except StrictJSONError:
        return None
    return found if isinstance(found, dict) and {"name", "arguments"} <= set(found) else None
