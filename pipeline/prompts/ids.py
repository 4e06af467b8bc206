"""Records become token ids: texts as they stand, chats by the template, ids as they are.

Promises: what the tokenizer adds to a text is its start alone, where `prompts.add_special_tokens`
asks for it; no prompt has its start twice, or ends as a finished text does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from pipeline.prompts.chats import Chat
from pipeline.prompts.records import PromptRecord
from pipeline.prompts.template import ChatWriter
from pipeline.prompts.values import BadRecord
from schemas.config.prompts import PromptsSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"
"""A text that shows what a tokenizer adds before a text and after it."""

Written = str | list[int] | BadRecord
"""A record on its way: the text that becomes ids, the ids, or what is wrong."""


class Encoder:
    """Turns records into ids by one tokenizer and the options of `[prompts]`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", section: PromptsSection) -> None:
        """Take the tokenizer and the options.

        Raises:
            ConfigError: an option does not fit the tokenizer.
        """
        self._tokenizer, self._starts = tokenizer, section.add_special_tokens
        self._added_end = _added(tokenizer)[1] if section.add_special_tokens else []
        self._writer = ChatWriter(tokenizer, section)

    def ids(self, records: Sequence[PromptRecord | BadRecord]) -> list[list[int] | BadRecord]:
        """Return the token ids of each record, or what is wrong with it.

        Raises:
            ConfigError: there is a chat, and the tokenizer has no chat template for it.
        """
        found = [self.written(record) for record in records]
        kinds = ["" if isinstance(record, BadRecord) else record.kind for record in records]
        for kind in ("prompt", "messages"):
            places = [place for place, text in enumerate(found) if isinstance(text, str)]
            places = [place for place in places if kinds[place] == kind]
            texts = [str(found[place]) for place in places]
            chats = [cast(PromptRecord, records[place]).value for place in places]
            own = self._own_ids(chats) if kind == "messages" else None
            encoded = self._encode(texts, kind) if own is None else own
            for place, text, ids in zip(places, texts, encoded, strict=True):
                found[place] = self._checked(ids, text, kind)
        return [ids for ids in found if not isinstance(ids, str)]

    def written(self, record: PromptRecord | BadRecord) -> Written:
        """Return the text that becomes a record's ids; the ids where the record has them."""
        if isinstance(record, BadRecord):
            return record
        if record.kind != "messages":
            value: str | list[int] = record.value
            return value
        try:
            return self._writer.write(record.value)
        except BadRecord as problem:
            return problem

    def _own_ids(self, chats: list[Chat]) -> list[list[int] | BadRecord] | None:
        """Return the ids of chats where the tokenizer's own code makes them; None elsewhere."""
        if not self._writer.has_own_code():
            return None
        found = list[list[int] | BadRecord]()
        for chat in chats:
            try:
                found.append(self._writer.ids(chat))
            except BadRecord as problem:
                found.append(problem)
        return found

    def _encode(self, texts: list[str], kind: str) -> Sequence[list[int] | BadRecord]:
        if not texts:
            return []
        add = self._starts and kind == "prompt"
        batch: list[list[int]] = self._tokenizer(
            texts,
            add_special_tokens=add,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        end = self._added_end if add else []
        return [ids[: -len(end)] if end and ids[-len(end) :] == end else ids for ids in batch]

    def _checked(self, ids: list[int] | BadRecord, text: str, kind: str) -> list[int] | BadRecord:
        """Return ids that begin once and do not end, unless a text is written so itself."""
        if isinstance(ids, BadRecord):
            return ids
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos] and (kind == "messages" or self._starts):
            return self._double_start(kind)
        if eos is not None and ids[-1:] == [eos] and not _ends(text, self._tokenizer.eos_token):
            return BadRecord(
                "end_token",
                f"the tokenizer ends the prompt with {self._tokenizer.eos_token!r}, which its text "
                "does not: correct the tokenizer, or give 'prompt_ids', which stay as they are",
            )
        return ids

    def _double_start(self, kind: str) -> BadRecord:
        start = self._tokenizer.bos_token
        if kind == "messages":
            words = (
                f"the chat template and the tokenizer write {start!r} twice at the start: correct "
            )
            return BadRecord("double_start", f"{words}one of them")
        return BadRecord(
            "double_start",
            f"the text begins with {start!r} and the tokenizer adds another: remove it from the "
            "text, or set prompts.add_special_tokens = false",
        )


def start_ids(tokenizer: "PreTrainedTokenizerBase", section: PromptsSection) -> list[int]:
    """Return the ids that are put before `prompt` text."""
    if not section.add_special_tokens:
        return []
    start, end = _added(tokenizer)
    return start if end else [int(i) for i in tokenizer("", add_special_tokens=True)["input_ids"]]


def _added(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer adds before a text and after it."""
    bare, whole = (
        [int(i) for i in tokenizer(PROBE, add_special_tokens=add)["input_ids"]]
        for add in (False, True)
    )
    for place in range(len(whole) - len(bare) + 1):
        if bare and whole[place : place + len(bare)] == bare:
            return whole[:place], whole[place + len(bare) :]
    return whole, []


def _ends(text: str, end: str | list[str] | None) -> bool:
    return isinstance(end, str) and text.rstrip().endswith(end)
