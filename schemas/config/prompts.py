"""`[prompts]`: where prompts come from."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from schemas.config.section import Positive, Section, SourcePlace, Text, later, tuning
from schemas.foreign import shown

COLUMNS = ("prompt", "messages", "prompt_ids", "reference", "teacher", "weight", "prompt_id")
"""Columns with a meaning."""


def _distinct(columns: dict[str, Text]) -> dict[str, Text]:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ValueError(f"{shown(unknown[0])} is no column of ours: {', '.join(COLUMNS)}")
    names = list(columns.values())
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the column {shown(twice[0])} of the file stands twice: name it once")
    return columns


class PromptsSection(Section):
    """`[prompts]`: where prompts come from."""

    train: SourcePlace
    """JSONL or Parquet file of the prompts to sample from, or a folder of such files: a path,
    `s3://…`, `hf://datasets/…`, or a URL of another scheme that fsspec knows."""
    eval: SourcePlace | None = None
    """The same of held-out prompts with a `reference`, for `opd eval`."""
    max_tokens: Positive
    """Longest prompt in tokens; a longer one is an error or skipped, never cut."""
    on_error: Literal["error", "skip"] = "error"
    """What a bad prompt does: stop with its file and line, or be counted and left out."""
    add_special_tokens: bool = False
    """Let the tokenizer add its own start tokens to `prompt` text; chat templates do so anyway."""
    chat_template_kwargs: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Extra variables of the chat template, such as `enable_thinking`."""
    answered: Literal["refuse", "drop", "continue"] = later("refuse")
    """What becomes of a chat that ends with an answer: a bad prompt; the answer is left off; or the
    student goes on with it."""
    columns: Annotated[dict[str, Text], AfterValidator(_distinct)] = later({})
    """Our name of a column → the name that it has in the files, such as `{prompt = "question",
    reference = "answer"}`."""
    max_gb: Annotated[float, Field(gt=0.0, le=1e6)] = tuning(16.0)
    """Most GiB that the files of `train`, or of `eval`, may be, as they are and decompressed."""
