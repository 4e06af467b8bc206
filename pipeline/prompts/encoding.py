"""Records of a prompt file become rows with token ids: text in batches, chats by the template.

Promises: ids are made once and never decoded and encoded again; a record is a row or is counted
under the reason why not.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from pipeline.models.tokenizer import vocabulary_size
from pipeline.prompts.files import PromptFile
from pipeline.prompts.ids import Encoder
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.records import PromptRecord, check_ids, parse_record
from pipeline.prompts.shapes import renamed
from pipeline.prompts.values import BadRecord
from schemas.config.prompts import PromptsSection
from schemas.config.run import RunConfig
from schemas.errors import ConfigError
from schemas.fingerprint import sequence_digest
from schemas.tables import PROMPTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    @property
    def reasons(self) -> str:
        """How many records were left out for which reason, in words; empty where none was."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record that was read: the row that it becomes, or what is wrong with it."""

    number: int
    value: object
    row: dict[str, Any] | BadRecord
    chat: bool = False


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
    for chunk in encoded_chunks(file, config, tokenizer, tally=tally):
        rows = [one.row for one in chunk if not isinstance(one.row, BadRecord)]
        yield _table(rows, tokenizer)
    _refuse(file, tally, config.prompts)


def encoded_chunks(
    file: PromptFile, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, tally: Tally
) -> Iterator[list[Encoded]]:
    """Yield what becomes of each record of a file in its order, a chunk at a time.

    Args:
        file: the prompt file.
        config: the run.
        tokenizer: the student's tokenizer.
        tally: counts what becomes a row and what does not.

    Raises:
        ConfigError: an option of `[prompts]` does not fit the tokenizer.
    """
    section, size = config.prompts, vocabulary_size(tokenizer)
    encoder = Encoder(tokenizer, section)
    for chunk in record_chunks(file, section.columns):
        tally.records += len(chunk)
        parsed = [_parsed(value, config) for _, value in chunk]
        found = []
        for (number, value), record, ids in zip(chunk, parsed, encoder.ids(parsed), strict=True):
            try:
                usable = _usable(ids, max_tokens=section.max_tokens, vocab_size=size)
                known = cast(PromptRecord, record)  # it has ids
                row = _row(known, usable, number=number, file=file, seen=tally.seen)
                chat = known.kind == "messages"
                tally.chats += chat
                found.append(Encoded(number, value, row, chat))
            except BadRecord as problem:
                tally.skip(file.place(number), problem)
                found.append(Encoded(number, value, problem))
        yield found


def _parsed(value: object, config: RunConfig) -> PromptRecord | BadRecord:
    if isinstance(value, BadRecord):
        return value
    try:
        return parse_record(renamed(value, config.prompts.columns), teachers=config.teachers)
    except BadRecord as problem:
        return problem


def _usable(ids: list[int] | BadRecord, *, max_tokens: int, vocab_size: int) -> list[int]:
    if isinstance(ids, BadRecord):
        raise ids
    check_ids(ids, max_tokens=max_tokens, vocab_size=vocab_size)
    return ids


def _row(
    record: PromptRecord, ids: list[int], *, number: int, file: PromptFile, seen: dict[str, int]
) -> dict[str, Any]:
    """Return the row of a record that no earlier one equals, and remember it."""
    digest = sequence_digest(ids, ())
    prompt_id = digest if record.prompt_id is None else record.prompt_id
    own = f"id:{prompt_id}"
    for key, what in ((digest, "token ids"), (own, "prompt_id"), (prompt_id, "prompt_id")):
        if key in seen:
            first = file.named(seen[key])
            raise BadRecord("duplicate", f"duplicate of {first}: it has the same {what}")
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
    head = f"{file.location}: {bad} of {tally.records} records cannot be used ({tally.reasons}):"
    hint = (
        "Correct the file: nothing is left of it"
        if bad == tally.records
        else 'Correct the file, or set prompts.on_error = "skip" to count them and leave them out'
    )
    if tally.skipped["too_long"]:
        hint += ". A larger prompts.max_tokens takes those that are too_long"
    raise ConfigError("\n".join([head, *tally.shown, *more, hint]))
