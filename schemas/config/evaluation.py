"""`[eval]` and `[reward]`: who grades responses, on held-out prompts and in rounds."""

import re
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.config.engines import EngineSection
from schemas.config.section import (
    NAME_PATTERN,
    Fraction,
    Natural,
    Positive,
    Section,
    file_and_function,
    later,
    tuning,
)

BUILT_IN = ("exact_match", "last_number", "choice", "regex", "math", "json_schema")
"""Graders that opd brings."""

COMMAND, BESIDE = "command", "./"
"""Grader that is a program of its own, and how words begin that name a file beside the TOML."""

HOW_TO_NAME = (
    f"a grader is {', '.join(BUILT_IN)}, 'grader.py:function' for a function of a file beside the "
    "configuration, the name of an entry point of the group opd.graders of an installed package, "
    "or 'command' with the words of a program beside the configuration"
)

Word = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]

CommandWords = Annotated[tuple[Word, ...], Field(min_length=1, max_length=64)]


AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]

TimeLimit = Annotated[float, Field(gt=0.0, le=86400.0)]


@dataclass(frozen=True)
class GraderChoice:
    """A grader as a table names it."""

    key: str
    """Such as `eval.reward`."""
    name: str
    pattern: str | None
    command: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """Return the choice as the TOML writes it."""
        return f"{self.key} = {self.name!r}"

    def check(self) -> None:
        """Make sure that it may be a grader's name, with a pattern where one belongs to it.

        Raises:
            ValueError: not so.
        """
        if file_grader(self) is None and not re.fullmatch(NAME_PATTERN, self.name):
            raise _unnamed(self)
        key = self.key.rpartition(".")[2]
        for name, beside, value in (
            ("regex", "pattern", self.pattern),
            (COMMAND, "command", self.command),
        ):
            if (self.name == name) != (value is not None):
                todo = "give one" if value is None else f"remove it for {self.name!r}"
                raise ValueError(f"{beside} belongs to {key} = {name!r}, which needs it: {todo}")
        if self.command is not None and not self.command[0].startswith(BESIDE):
            raise ValueError(
                f"command begins with {self.command[0]!r}, expected a program beside the "
                f"configuration, such as {BESIDE}grade.sh; its first line names its interpreter"
            )
        if self.pattern is not None:
            _check_pattern(self.pattern)


def file_grader(choice: GraderChoice) -> tuple[str, str] | None:
    """Return the file and the function that a choice names, or None where it names no file.

    The form `module:function` names the file `module.py`.

    Raises:
        ValueError: it has another form.
    """
    if ":" not in choice.name:
        return None
    found = file_and_function(choice.name)
    if found is None:
        raise _unnamed(choice)
    return found


def _unnamed(choice: GraderChoice) -> ValueError:
    return ValueError(f"{choice.key.rpartition('.')[2]} = {choice.name!r}: {HOW_TO_NAME}")


class EvalSection(EngineSection):
    """`[eval]`: held-out prompts, sampled and graded after each round."""

    reward: str
    """Grader: `exact_match`, `last_number`, `choice`, `regex`, `math`, `json_schema`,
    `grader.py:function` for a function of a file beside the TOML, an entry point `opd.graders` of
    an installed package, or `command`."""
    pattern: str | None = None
    """`regex` only: its first group (or the whole match) is compared with the reference."""
    command: CommandWords | None = later(None)
    """`command` only: program and arguments. Words that begin with `./`, as the first has to, are
    files beside the TOML. It answers a JSON line for each response with one, without a shell."""
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
    grader_timeout_s: TimeLimit = tuning(10.0)
    """Seconds that `regex`, a library, or a grader of your own has for one response."""
    teachers: bool = tuning(True)
    """Also grade the teachers, once, as the accuracy to reach."""

    @property
    def response_limit(self) -> int | None:
        """Return the most tokens of a response; None for that of `[rollout]`."""
        return self.max_new_tokens

    @property
    def choice(self) -> GraderChoice:
        """Return the grader."""
        return GraderChoice("eval.reward", self.reward, self.pattern, self.command)

    @model_validator(mode="after")
    def _check(self) -> "EvalSection":
        self.choice.check()
        if 0.0 < self.temperature < 1e-6:
            raise ValueError("temperature is 0, or at least 1e-6")
        if self.samples_per_prompt > 1 and self.temperature == 0.0:
            raise ValueError("samples_per_prompt above 1 needs a temperature above 0")
        return self


class RewardSection(Section):
    """`[reward]`: a reward for each response that is trained on; without it there is none."""

    grader: str = tuning(...)
    """Grader: as `eval.reward`, on the prompts to train on. It may return any finite number."""
    pattern: str | None = tuning(None)
    """`regex` only: its first group (or the whole match) is compared with the reference."""
    command: CommandWords | None = tuning(None)
    """`command` only: as `eval.command`."""
    unfinished: Literal["zero", "grade", "none"] = tuning("zero")
    """Of a response that did not end by itself: reward 0 (`zero`), that of the grader (`grade`), or
    no reward at all (`none`)."""
    advantage: AdvantageKind = tuning("grpo")
    """What a reward becomes inside the group of its prompt's samples: distance from the mean in
    standard deviations (`grpo`), the distance (`dr_grpo`), distance from the mean of the others
    (`rloo`)."""
    timeout_s: TimeLimit = tuning(10.0)
    """Seconds that `regex`, or a grader of your own, has for one response."""
    memory_gb: Annotated[float, Field(ge=0.125, le=65536.0)] = tuning(4.0)
    """Memory that each process of a grader may have, on Linux."""
    processes: Annotated[int, Field(ge=1, le=256)] = tuning(2)
    """Processes of `regex`, or of a grader of your own, that work at once."""

    @property
    def choice(self) -> GraderChoice:
        """Return the grader."""
        return GraderChoice("reward.grader", self.grader, self.pattern, self.command)

    def words(self) -> dict[str, Any]:
        """Return what a reward depends on beside the grader's code."""
        words = {"grader": self.grader, "pattern": self.pattern, "unfinished": self.unfinished}
        return words if self.command is None else {**words, "command": list(self.command)}

    @model_validator(mode="after")
    def _check(self) -> "RewardSection":
        self.choice.check()
        return self


def _check_pattern(pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern is no regular expression: {error}") from error
