"""One record of a prompt file as it is, as text and as the ids that are pinned, or would be.

Promises: nothing is stored; the ids are what a run reads, where it has pinned its prompts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.prompts.encoding import Encoded, Tally, encoded_chunks
from pipeline.prompts.files import PromptFile, require_prompt_file
from pipeline.prompts.ids import Encoder
from pipeline.prompts.pinning import Split, read_prompts
from pipeline.prompts.records import parse_record
from pipeline.prompts.shapes import renamed
from pipeline.prompts.template import TODAY, template_source
from pipeline.prompts.values import BadRecord
from pipeline.runs.run import Run
from pipeline.store.records import find_record
from schemas.errors import ConfigError
from schemas.keys import manifest_key, prompts_folder
from schemas.records.runs import PromptsManifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Token:
    """A token id: its piece of the vocabulary, its text, and whether it is special."""

    id: int
    piece: str
    text: str
    special: bool


@dataclass(frozen=True)
class Preview:
    """A record, its text after the template, and its ids."""

    split: Split
    place: str
    number: int
    record: object
    text: str
    tokens: tuple[Token, ...]
    pinned: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A record of the file: how many come before it, and whether it is in the pinned prompts."""

    one: Encoded
    before: int
    pinned: dict[str, Any] | None
    notes: list[str]


def preview_prompt(
    run: Run, split: Split, tokenizer: "PreTrainedTokenizerBase", number: int | None
) -> Preview:
    """Return a record of a prompt file on its way to token ids.

    Args:
        run: the run.
        split: which file of `[prompts]`.
        tokenizer: the student's tokenizer.
        number: line or row of the record, from 1; None for the first record.

    Raises:
        ConfigError: there is no such file or record, or the record is left out.
    """
    source: str | None = getattr(run.config.prompts, split)
    if source is None:
        raise ConfigError(f"prompts.{split} is not set: name a JSONL or Parquet file of prompts")
    file = require_prompt_file(run.place, source, key=f"prompts.{split}", config=run.config)
    found = _pinned(run, split, file, *_record(file, run, tokenizer, number))
    row, notes = found.one.row, list(found.notes)
    if found.pinned is None and isinstance(row, BadRecord):
        place = file.place(found.one.number)
        raise ConfigError(f"{place} is left out as a prompt ({row.reason}): {row}")
    made = None if isinstance(row, BadRecord) else row["prompt_ids"]
    if found.pinned is not None and found.pinned["prompt_ids"] != made:
        why = f"be left out: {row}" if isinstance(row, BadRecord) else "become other ids"
        notes.append(f"these ids were pinned; made anew today, the record would {why}")
        text, ids = found.pinned["text"], found.pinned["prompt_ids"]
    else:
        text, ids = _text(found.one, run, tokenizer), made or []
    if found.one.chat and TODAY in template_source(tokenizer):
        notes.append("the chat template writes today's date: other days give other ids")
    return Preview(
        split=split,
        place=file.place(found.one.number),
        number=found.one.number,
        record=found.one.value,
        text=text,
        tokens=tuple(_tokens(ids, tokenizer)),
        pinned=found.pinned is not None,
        notes=tuple(notes),
    )


def _record(
    file: PromptFile, run: Run, tokenizer: "PreTrainedTokenizerBase", number: int | None
) -> tuple[Encoded, int]:
    """Return a record and how many come before it."""
    before, last = 0, None
    for chunk in encoded_chunks(file, run.config, tokenizer, tally=Tally()):
        for place, one in enumerate(chunk):
            if number is None or one.number == number:
                return one, before + place
            if one.number > number:
                raise ConfigError(f"{file.place(number)} is blank: it holds no record")
        before, last = before + len(chunk), chunk[-1].number
    if last is None:
        raise ConfigError(f"{file.location} holds no records: expected one prompt per line or row")
    raise ConfigError(
        f"{file.location} has no {file.unit} {number}: it has {before} records, the last one in "
        f"{file.named(last)}"
    )


def _pinned(run: Run, split: Split, file: PromptFile, one: Encoded, before: int) -> _Found:
    """Return a record with its row of the pinned prompts, where it can be told."""
    key = manifest_key(prompts_folder(run.name, split))
    manifest = find_record(run.storage, key, PromptsManifest)
    if manifest is None:
        return _Found(one, before, None, ["not pinned yet: the first stage pins these ids"])
    table, row = read_prompts(run.storage, manifest), None
    if manifest.source_sha256 == file.sha256 and not manifest.skipped:
        row = table.slice(before, 1)
    elif not isinstance(one.row, BadRecord):
        row = table.slice(_place(table, one.row["prompt_id"]), 1)
    if row is None or not row.num_rows:
        words = (
            "not among the run's pinned prompts: they were made of another file or by other rules"
        )
        return _Found(one, before, None, [words])
    return _Found(one, before, row.to_pylist()[0], [])


def _place(table: pa.Table, prompt_id: str) -> int:
    place: int = pc.index(table["prompt_id"], prompt_id).as_py()
    return table.num_rows if place < 0 else place


def _text(one: Encoded, run: Run, tokenizer: "PreTrainedTokenizerBase") -> str:
    value = renamed(one.value, run.config.prompts.columns)
    record = parse_record(value, teachers=run.config.teachers)
    written = Encoder(tokenizer, run.config.prompts).written(record)
    return written if isinstance(written, str) else str(tokenizer.decode(record.value))


def _tokens(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[Token]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added.union(tokenizer.all_special_ids)
    pieces: Any = tokenizer.convert_ids_to_tokens(ids)
    return [
        Token(index, str(piece), str(tokenizer.decode([index])), index in special)
        for index, piece in zip(ids, pieces, strict=True)
    ]
