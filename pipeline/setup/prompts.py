"""Prompts of a new run: samples where there are none, and what those that are there are like."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.prompts.encoding import Tally, encoded_chunks
from pipeline.prompts.files import PromptFile
from pipeline.prompts.reading import record_chunks
from pipeline.prompts.shapes import KINDS, in_our_shape
from pipeline.prompts.values import BadRecord
from pipeline.quickstart.addition import distinct
from schemas.config.run import RunConfig
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAIN, HELD_OUT = "prompts.jsonl", "held-out.jsonl"
"""Names of the files that are made."""

TASK = "addition"
"""The built-in task."""

PROMPT_NAMES = ("question", "problem", "query", "instruction", "input", "inputs", "text")

REFERENCE_NAMES = ("answer", "final_answer", "ground_truth", "target", "solution", "label")
"""What other files call a prompt, and what is expected of it."""

HALVES = ("instruction", "input")
"""Columns of one prompt in two parts."""

ANSWERED = "answered"
"""Why a chat is left out whose last message is the answer."""

TASK_PROMPTS, TASK_HELD_OUT, TASK_SEED = 4096, 128, 0

SAMPLES = {
    TRAIN: (
        ("What is 12 times 12?", 144),
        ("A farmer has 17 cows and buys 26 more. How many cows is that in all?", 43),
        ("How many minutes are three and a half hours?", 210),
    ),
    HELD_OUT: (
        ("What is 15 times 32?", 480),
        ("168 eggs are packed into boxes of 6. How many boxes are needed?", 28),
        ("How many days do six weeks have?", 42),
    ),
}
"""File → prompts and their references."""


@dataclass(frozen=True)
class PromptFacts:
    """What the prompts of a file are like, as far as it was read."""

    count: int | None
    """None where the file goes on after what was read."""
    longest: int
    unusable: str = ""
    answered: int = 0
    """Chats that end with an answer, where that was refused."""

    @property
    def words(self) -> str:
        """What was found, for people."""
        count = "many" if self.count is None else f"{self.count:,}"
        left = f"; left out: {self.unusable}" if self.unusable else ""
        return f"{count} that can be used, the longest of {self.longest:,} tokens{left}"


def sample_files(tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, bytes]:
    """Return files with three samples each, as chats where the tokenizer can write one."""
    chats = bool(getattr(tokenizer, "chat_template", None))
    return {
        name: _lines([_sample(question, answer, chats=chats) for question, answer in rows])
        for name, rows in SAMPLES.items()
    }


def task_files() -> dict[str, bytes]:
    """Return the files of the built-in task: additions, none of them in both."""
    sizes = {TRAIN: (TASK_PROMPTS, TASK_SEED), HELD_OUT: (TASK_HELD_OUT, TASK_SEED + 1)}
    return {
        name: _lines(
            [
                {"prompt": one.prompt, "reference": one.answer}
                for one in distinct(count, seed, held_out=name == HELD_OUT)
            ]
        )
        for name, (count, seed) in sizes.items()
    }


def proposed_columns(file: PromptFile) -> dict[str, str]:
    """Return how the columns of a file are to be mapped: nothing where it has our names.

    Raises:
        ConfigError: the file cannot be read, or no column of it looks like a prompt.
    """
    refused: ConfigError | None = None
    for name in ("", *PROMPT_NAMES):
        columns = {"prompt": name} if name else {}
        try:
            first = next(record_chunks(file, columns), [])
        except ConfigError as error:
            refused = refused or error
            continue
        records = [value for _, value in first if isinstance(value, dict)]
        if not name and not any(_is_unknown(one) for one in records):
            return {}
        if not name and any(all(map(one.get, HALVES)) for one in records):
            return {}  # either column alone would be half of a prompt: the record says what to do
        if name and records and all(isinstance(one.get(name), str) for one in records):
            there = next((n for n in REFERENCE_NAMES if n in records[0]), None)
            ours = "reference" in records[0] or there is None
            return columns if ours or there is None else {**columns, "reference": there}
    if refused is not None:
        raise refused
    return {}


def _is_unknown(record: dict[str, Any]) -> bool:
    """Return whether a record has no prompt in any shape that is known."""
    try:
        return not set(in_our_shape(record)) & set(KINDS)
    except BadRecord:
        return False


def look_at_prompts(
    file: PromptFile, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", *, key: str
) -> PromptFacts:
    """Return what the first prompts of a file are like; some thousands are read.

    Raises:
        ConfigError: no prompt of it can be used.
    """
    tally = Tally()
    chunks = encoded_chunks(file, config, tokenizer, tally=tally)
    first = next(chunks, [])
    lengths = [len(one.row["prompt_ids"]) for one in first if not isinstance(one.row, BadRecord)]
    answered = tally.skipped[ANSWERED]
    if not lengths and not answered:
        found = "\n".join(tally.shown) or "  it holds no records"
        raise ConfigError(f"{key}: no prompt of {file.location} can be used:\n{found}")
    goes_on = bool(next(chunks, []))
    return PromptFacts(
        count=None if goes_on else len(lengths),
        longest=max(lengths, default=0),
        unusable=tally.reasons,
        answered=answered,
    )


def _sample(question: str, answer: int, *, chats: bool) -> dict[str, Any]:
    if chats:
        return {"messages": [{"role": "user", "content": question}], "reference": answer}
    return {"prompt": f"Question: {question}\nAnswer:", "reference": answer}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
