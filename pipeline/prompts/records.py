"""One record of a prompt file: what it may hold, and what is wrong with it. Pure.

Promises: any JSON value is either a `PromptRecord` or one `BadRecord` that says why not.
"""

import difflib
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pipeline.prompts.chats import check_text_alone, parse_chat
from pipeline.prompts.shapes import KINDS, expected_shape, in_our_shape
from pipeline.prompts.values import BadRecord, Foreign, encodable, wrong_type
from schemas.foreign import shown

FIELDS = (*KINDS, "reference", "teacher", "weight", "prompt_id")
"""Columns with a meaning; all others are free metadata."""

LONGEST_NAME = 100
"""Characters of an unknown teacher that are compared with known ones."""

LEAST_WEIGHT, LARGEST_WEIGHT = 1e-37, 3e38
"""Weights that float32 holds in full precision."""


CHAT_IN_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|from)["']\s*:""")
"""How a chat begins that somebody wrote as text."""


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A well-formed record, not tokenised yet; `kind` says what `value` is: text, ids or `Chat`."""

    kind: str
    value: Any
    prompt_id: str | None
    reference: str | None
    teacher: str | None
    weight: float
    metadata: str | None


def parse_record(record: object, *, teachers: Collection[str]) -> PromptRecord:
    """Return a record of a prompt file, checked; a null counts as an absent value.

    Args:
        record: the JSON value.
        teachers: names of the teachers that a record may choose.

    Raises:
        BadRecord: the record cannot be used.
    """
    if not isinstance(record, dict):
        raise BadRecord(
            "not_an_object", f"expected a JSON object, found {shown(record)}{_hint(record)}"
        )
    record = in_our_shape(record)
    fields = {key: value for key, value in record.items() if value is not None}
    kinds = [kind for kind in KINDS if kind in fields]
    if not kinds:
        raise BadRecord(
            "no_prompt",
            f"expected one of {', '.join(KINDS)}, found {shown(list(record))}"
            f"{expected_shape(fields)}",
        )
    if len(kinds) > 1:
        raise BadRecord("several_prompts", f"expected one prompt, found {' and '.join(kinds)}")
    kind = kinds[0]
    if kind != "prompt_ids":
        check_text_alone(fields)
    check = {"prompt": _text, "prompt_ids": _ids, "messages": parse_chat}[kind]
    return PromptRecord(
        kind=kind,
        value=check(fields if kind == "messages" else fields[kind]),
        prompt_id=_prompt_id(fields.get("prompt_id")),
        reference=_reference(fields.get("reference")),
        teacher=_teacher(fields.get("teacher"), teachers),
        weight=_weight(fields.get("weight", 1.0)),
        metadata=_metadata({k: v for k, v in record.items() if k not in FIELDS}),
    )


def _hint(record: object) -> str:
    objects = (
        [part for part in record if isinstance(part, dict)] if isinstance(record, list) else []
    )
    if any("role" in part or "from" in part for part in objects):
        return ': write a chat as {"messages": […]}'
    return ": write each object of the list on a line of its own" if objects else ""


def check_ids(ids: list[int], *, max_tokens: int, vocab_size: int) -> None:
    """Make sure that token ids make a usable prompt.

    Raises:
        BadRecord: none, too many, or one outside the vocabulary.
    """
    if not ids:
        raise BadRecord("empty", "the prompt has no tokens")
    if len(ids) > max_tokens:
        raise BadRecord(
            "too_long", f"the prompt has {len(ids)} tokens, prompts.max_tokens is {max_tokens}"
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        bad = next(i for i in ids if not 0 <= i < vocab_size)
        raise BadRecord(
            "id_outside_vocabulary",
            f"token id {shown(bad)} is outside the vocabulary of {vocab_size} ids",
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise wrong_type("prompt", "text", value)
    if not value.strip():
        raise BadRecord("empty", "'prompt' is empty")
    if CHAT_IN_TEXT.match(value):
        raise BadRecord(
            "wrong_type", "'prompt' is text that holds a chat as JSON: write it as a list, unquoted"
        )
    return encodable(value, "prompt")


def _ids(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise wrong_type("prompt_ids", "a list of whole numbers", value)
    return value


def _prompt_id(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type("prompt_id", "text", value)
    if not value:
        raise BadRecord("empty", "'prompt_id' is empty")
    return encodable(value, "prompt_id")


def _reference(value: object) -> str | None:
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise wrong_type("reference", "text or a number", value)
    return encodable(value, "reference")


def _teacher(value: object, teachers: Collection[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type("teacher", "text", value)
    if value not in teachers:
        close = difflib.get_close_matches(value[:LONGEST_NAME], teachers, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(teachers)}"
        raise BadRecord("unknown_teacher", f"there is no teacher {shown(value)}; {hint}")
    return value


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type("weight", "a number", value)
    if not LEAST_WEIGHT <= value <= LARGEST_WEIGHT:  # NaN is in no interval
        raise BadRecord("bad_weight", f"'weight' is {shown(value)}, expected a number above 0")
    return float(value)


def _metadata(free: dict[str, Any]) -> str | None:
    """Return free columns as JSON; NaN and infinities, which JSON lacks, become null."""
    if not free:
        return None
    try:
        text = json.dumps(_finite(free), sort_keys=True, ensure_ascii=False, default=_plain)
    except RecursionError as error:
        raise BadRecord("wrong_type", "a free column is nested too deeply") from error
    return encodable(text, "a free column")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _plain(value: object) -> str:
    if isinstance(value, Foreign | Decimal):
        return str(value)
    raise BadRecord("wrong_type", f"a free column holds {shown(value)}, which JSON cannot hold")
