"""Records of a prompt file become rows with token ids: text in batches, chats by the template.

Promises: ids are made once and never decoded and encoded again; a record is a row or is counted
under the reason why not.
"""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.models.tokenizer import vocabulary_size
from pipeline.prompts.files import PromptFile
from pipeline.prompts.reading import Numbered, record_chunks
from pipeline.prompts.records import BadRecord, PromptRecord, check_ids, parse_record
from schemas.config.prompts import PromptsSection
from schemas.config.run import RunConfig
from schemas.errors import ConfigError
from schemas.fingerprint import sequence_digest
from schemas.foreign import excerpt
from schemas.tables import PROMPTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)
"""What a template's own code raises for messages that it does not expect."""

SHOWN_PROBLEMS = 5
"""Bad records that an error lists; all are counted."""


@dataclass
class Tally:
    """What has become of the records of a file so far."""

    records: int = 0
    chats: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    """Record that has a digest of token ids, or, after `id:`, a prompt id of its own."""

    def skip(self, place: str, problem: BadRecord) -> None:
        """Count a record that cannot be used."""
        self.skipped[problem.reason] += 1
        if len(self.shown) < SHOWN_PROBLEMS:
            self.shown.append(f"  {place}: {problem}")


def prompt_tables(
    file: PromptFile, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, tally: Tally
) -> Iterator[pa.Table]:
    """Yield the usable prompts of a file in its order, a chunk at a time.

    Args:
        file: the prompt file.
        config: the run.
        tokenizer: the student's tokenizer.
        tally: counts what is yielded and what is left out.

    Raises:
        ConfigError: after the last record, if none is usable, or one is not and may not be skipped.
    """
    section, size = config.prompts, vocabulary_size(tokenizer)
    _check_template_variables(tokenizer, section)
    for chunk in record_chunks(file):
        tally.records += len(chunk)
        parsed = list(_parsed(chunk, file, config, tally=tally))
        encoded = encode_records(tokenizer, [record for _, record in parsed], section)
        rows = []
        for (number, record), ids in zip(parsed, encoded, strict=True):
            try:
                usable = _usable(ids, max_tokens=section.max_tokens, vocab_size=size)
                rows.append(_row(record, usable, number=number, unit=file.unit, seen=tally.seen))
                tally.chats += record.kind == "messages"
            except BadRecord as problem:
                tally.skip(file.place(number), problem)
        yield _table(rows, tokenizer)
    _refuse(file, tally, section)


def encode_records(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[PromptRecord], section: PromptsSection
) -> list[list[int] | BadRecord]:
    """Return the token ids of each record, or what is wrong with it.

    Raises:
        ConfigError: there is a chat, and the tokenizer has no chat template.
    """
    texts = [record.value for record in records if record.kind == "prompt"]
    encoded = iter(_encode_texts(tokenizer, texts, section.add_special_tokens))
    result: list[list[int] | BadRecord] = []
    for record in records:
        if record.kind == "prompt":
            result.append(next(encoded))
        elif record.kind == "messages":
            result.append(_encode_chat(tokenizer, record.value, section.chat_template_kwargs))
        else:
            result.append(record.value)
    return result


def start_ids(tokenizer: "PreTrainedTokenizerBase", section: PromptsSection) -> list[int]:
    """Return the ids that the tokenizer adds to `prompt` text of its own accord."""
    if not section.add_special_tokens:
        return []
    return [int(i) for i in tokenizer("", add_special_tokens=True)["input_ids"]]


def _check_template_variables(
    tokenizer: "PreTrainedTokenizerBase", section: PromptsSection
) -> None:
    options = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"chat_template"}
    taken = sorted(options.intersection(section.chat_template_kwargs))
    if taken:
        raise ConfigError(
            f"prompts.chat_template_kwargs: {taken[0]!r} is an option of the tokenizer's call, "
            "which opd sets, and no variable of the chat template; remove it"
        )


def _parsed(
    chunk: list[Numbered], file: PromptFile, config: RunConfig, *, tally: Tally
) -> Iterator[tuple[int, PromptRecord]]:
    for number, value in chunk:
        try:
            if isinstance(value, BadRecord):
                raise value
            yield number, parse_record(value, teachers=config.teachers)
        except BadRecord as problem:
            tally.skip(file.place(number), problem)


def _encode_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], add_special_tokens: bool
) -> list[list[int] | BadRecord]:
    if not texts:
        return []
    batch = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    start = tokenizer.bos_token_id
    if not add_special_tokens or start is None:
        return list(batch)
    return [_double_start(tokenizer) if ids[:2] == [start, start] else ids for ids in batch]


def _double_start(tokenizer: "PreTrainedTokenizerBase") -> BadRecord:
    return BadRecord(
        "double_start",
        f"the text begins with {tokenizer.bos_token!r} and the tokenizer adds another: remove it "
        "from the text, or set prompts.add_special_tokens = false",
    )


def _encode_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], variables: dict[str, Any]
) -> list[int] | BadRecord:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            "the prompts hold 'messages', and the student's tokenizer has no chat template: give "
            "'prompt' text instead, or add a chat_template.jinja to the student's folder"
        )
    try:
        result: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, **variables
        )
    except (TemplateError, *REFUSALS) as error:
        words = excerpt(str(error))
        return BadRecord("bad_messages", f"the chat template refuses the messages: {words}")
    ids = result["input_ids"] if hasattr(result, "keys") else result
    return [int(i) for i in ids]


def _usable(ids: list[int] | BadRecord, *, max_tokens: int, vocab_size: int) -> list[int]:
    if isinstance(ids, BadRecord):
        raise ids
    check_ids(ids, max_tokens=max_tokens, vocab_size=vocab_size)
    return ids


def _row(
    record: PromptRecord, ids: list[int], *, number: int, unit: str, seen: dict[str, int]
) -> dict[str, Any]:
    """Return the row of a record that no earlier one equals, and remember it."""
    digest = sequence_digest(ids, ())
    prompt_id = digest if record.prompt_id is None else record.prompt_id
    own = f"id:{prompt_id}"
    for key, what in ((digest, "token ids"), (own, "prompt_id"), (prompt_id, "prompt_id")):
        if key in seen:
            raise BadRecord("duplicate", f"duplicate of {unit} {seen[key]}: it has the same {what}")
    seen[digest] = number
    if record.prompt_id is not None:
        seen[own] = number
    return {
        "prompt_id": prompt_id,
        "prompt_ids": ids,
        "text": record.value if record.kind == "prompt" else None,
        "reference": record.reference,
        "teacher": record.teacher,
        "weight": record.weight,
        "metadata": record.metadata,
    }


def _table(rows: list[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> pa.Table:
    """Return rows as a table; where the file gave no text, one is decoded for people to read."""
    silent = [row for row in rows if row["text"] is None]
    if silent:
        texts = tokenizer.batch_decode([row["prompt_ids"] for row in silent])
        for row, text in zip(silent, texts, strict=True):
            row["text"] = text
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def _refuse(file: PromptFile, tally: Tally, section: PromptsSection) -> None:
    bad = tally.skipped.total()
    if not tally.records:
        raise ConfigError(f"{file.location} holds no records: expected one prompt per line or row")
    if not bad or (section.on_error == "skip" and bad < tally.records):
        return
    more = [f"  and {bad - len(tally.shown)} more"] if bad > len(tally.shown) else []
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.skipped.most_common())
    head = f"{file.location}: {bad} of {tally.records} records cannot be used ({reasons}):"
    hint = (
        "Correct the file: nothing is left of it"
        if bad == tally.records
        else 'Correct the file, or set prompts.on_error = "skip" to count them and leave them out'
    )
    raise ConfigError("\n".join([head, *tally.shown, *more, hint]))
