"""`[eval]`: held-out prompts and their grading."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.section import Fraction, Positive, tuning


class EvalSection(EngineSection):
    """`[eval]`: held-out prompts, sampled and graded after each round."""

    reward: str
    """Grader: `exact_match`, `last_number`, `regex` or a Python `module:function`."""
    pattern: str | None = None
    """`regex` only: its first group (or the whole match) is compared with the reference."""
    require_stop: bool = True
    """Count a response as wrong if it did not end by itself."""
    max_prompts: Positive | None = None
    """Held-out prompts to use, from the start of the file; default all."""
    samples_per_prompt: Positive = 1
    """Responses per prompt; more than one needs a temperature above 0."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    top_p: Fraction = 1.0
    """Nucleus (top-p) sampling; 1.0 turns it off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Top-k sampling; 0 turns it off."""
    max_new_tokens: Positive | None = None
    """Longest response in tokens; default that of `[rollout]`."""
    every_rounds: Positive = tuning(1)
    """Rounds from one eval of `opd run` to the next; the last round is always graded."""
    teachers: bool = tuning(True)
    """Also grade the teachers, once, as the accuracy to reach."""

    @property
    def response_limit(self) -> int | None:
        """Return the most tokens of a response; None for that of `[rollout]`."""
        return self.max_new_tokens

    @model_validator(mode="after")
    def _check(self) -> "EvalSection":
        builtin = ("exact_match", "last_number", "regex")
        if self.reward not in builtin and self.reward.count(":") != 1:
            raise ValueError(
                f"reward = {self.reward!r} is none of {', '.join(builtin)} or 'module:function'"
            )
        if (self.reward == "regex") != (self.pattern is not None):
            raise ValueError("pattern belongs to reward = 'regex', which needs it")
        if self.samples_per_prompt > 1 and self.temperature == 0.0:
            raise ValueError("samples_per_prompt above 1 needs a temperature above 0")
        return self
