"""`[prompts]`: where prompts come from."""

from typing import Literal

from pydantic import Field

from schemas.config.section import Place, Positive, Section, later


class PromptsSection(Section):
    """`[prompts]`: where prompts come from."""

    train: Place
    """JSONL or Parquet file (path or `s3://…`) of the prompts to sample from."""
    eval: Place | None = None
    """JSONL or Parquet file of held-out prompts with a `reference`, for `opd eval`."""
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
