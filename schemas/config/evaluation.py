"""`[eval]`: held-out prompts and their grading."""

import keyword
import re
import warnings
from typing import Annotated

from pydantic import Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.section import NAME_PATTERN, Fraction, Natural, Positive, tuning

BUILT_IN = ("exact_match", "last_number", "regex")
"""Graders that opd brings."""

HOW_TO_NAME = (
    f"a grader is {', '.join(BUILT_IN)}, 'grader.py:function' for a function of a file beside the "
    "configuration, or the name of an entry point of the group opd.graders of an installed package"
)


def file_grader(reward: str) -> tuple[str, str] | None:
    """Return the file and the function that a reward names, or None where it names no file.

    The form `module:function` names the file `module.py`.

    Raises:
        ValueError: it has another form.
    """
    file, separator, function = reward.partition(":")
    if not separator:
        return None
    stem = file.removesuffix(".py")
    names = re.fullmatch(r"[\w-]+" if file.endswith(".py") else r"\w+", stem)
    if not names or not function.isidentifier() or keyword.iskeyword(function):
        raise ValueError(f"reward = {reward!r}: {HOW_TO_NAME}")
    return f"{stem}.py", function


class EvalSection(EngineSection):
    """`[eval]`: held-out prompts, sampled and graded after each round."""

    reward: str
    """Grader: `exact_match`, `last_number`, `regex`, `grader.py:function` for a function of a file
    beside the TOML, or an entry point `opd.graders` of an installed package."""
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
    top_k: Natural = 0
    """Top-k sampling; 0 turns it off."""
    max_new_tokens: Positive | None = None
    """Longest response in tokens; default that of `[rollout]`."""
    every_rounds: Positive = tuning(1)
    """Rounds from one eval of `opd run` to the next; the last round is always graded."""
    grader_timeout_s: Annotated[float, Field(gt=0.0, le=86400.0)] = tuning(10.0)
    """Seconds that `regex`, or a grader of your own, has for one response."""
    teachers: bool = tuning(True)
    """Also grade the teachers, once, as the accuracy to reach."""

    @property
    def response_limit(self) -> int | None:
        """Return the most tokens of a response; None for that of `[rollout]`."""
        return self.max_new_tokens

    @model_validator(mode="after")
    def _check(self) -> "EvalSection":
        if file_grader(self.reward) is None and not re.fullmatch(NAME_PATTERN, self.reward):
            raise ValueError(f"reward = {self.reward!r}: {HOW_TO_NAME}")
        if (self.reward == "regex") != (self.pattern is not None):
            raise ValueError("pattern belongs to reward = 'regex', which needs it")
        if self.pattern is not None:
            _check_pattern(self.pattern)
        if 0.0 < self.temperature < 1e-6:
            raise ValueError("temperature is 0, or at least 1e-6")
        if self.samples_per_prompt > 1 and self.temperature == 0.0:
            raise ValueError("samples_per_prompt above 1 needs a temperature above 0")
        return self


def _check_pattern(pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern is no regular expression: {error}") from error
