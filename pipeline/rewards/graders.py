"""Grading: responses become grades, 1.0 for right and 0.0 for wrong, or another finite number.

Promises: code that is not opd's, and a user's pattern, run in a process of their own with a
time-out; a grade that is no finite number is refused with the prompt that it belongs to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.rewards.builtin import COMPARISONS, same_text
from pipeline.rewards.location import Grader
from pipeline.rewards.process import GraderFault, GraderProcess, running_grader
from schemas.config.evaluation import BUILT_IN, GraderChoice
from schemas.errors import ConfigError
from schemas.foreign import excerpt

Grade = Callable[[Sequence["Response"]], list[float]]


@dataclass(frozen=True)
class Response:
    """What is graded."""

    prompt_id: str
    text: str
    reference: str | None
    metadata: str | None
    """The prompt's free columns, as JSON."""


@contextmanager
def open_grader(grader: Grader, *, timeout_s: float) -> Iterator[Grade]:
    """Give what grades responses in order, for the length of a block.

    Args:
        grader: which one.
        timeout_s: seconds that code which is not opd's has for a response.

    Raises:
        ConfigError: it cannot be loaded, or it fails on a response.
    """
    if not grader.start:
        yield partial(_compared, grader.choice)
        return
    try:
        with running_grader(grader.start) as process:
            ask = _spanned if "pattern" in grader.start else _asked
            yield partial(_each, grader.choice, partial(ask, process, timeout_s=timeout_s))
    except GraderFault as error:
        raise ConfigError(f"{grader.choice} cannot be loaded: it {error}") from error


def try_grader(grader: Grader) -> None:
    """Make sure that a grader of the user's own can be loaded; it grades nothing.

    Raises:
        ConfigError: it cannot.
    """
    if grader.is_own:
        with open_grader(grader, timeout_s=0.0):
            pass


def check_references(choice: GraderChoice, rows: Sequence[Response]) -> None:
    """Make sure that prompts have the references that a grader of opd compares with.

    Args:
        choice: the grader; one of the user's own may do without references.
        rows: a response of any text to each prompt.

    Raises:
        ConfigError: one has none, or one that the grader cannot read.
    """
    if choice.name in COMPARISONS:
        _compared(choice, rows)
    elif choice.name in BUILT_IN:
        for index, row in enumerate(rows):
            _reference(choice, index, row)


def _compared(choice: GraderChoice, responses: Sequence[Response]) -> list[float]:
    """Return the grades of a grader that is built in."""
    grades = []
    for index, one in enumerate(responses):
        reference = _reference(choice, index, one)
        try:
            grades.append(COMPARISONS[choice.name](one.text, reference))
        except ValueError as error:
            raise ConfigError(
                f"{choice} cannot grade {_where(index, one)}: {error} "
                f"({excerpt(reference, 100)!r}). Correct it in prompts.eval"
            ) from None
    return grades


def _each(
    choice: GraderChoice,
    ask: Callable[[Sequence[Response]], Iterator[float]],
    responses: Sequence[Response],
) -> list[float]:
    """Return the grades of a process; a fault names the response that it was asked for."""
    if choice.name == "regex":
        for index, one in enumerate(responses):
            _reference(choice, index, one)
    grades: list[float] = []
    try:
        for grade in ask(responses):
            grades.append(grade)
    except GraderFault as error:
        index = len(grades)
        what = "pattern" if choice.name == "regex" else "grader"
        raise ConfigError(
            f"{choice}: the {what} {error}. That was on "
            f"{_where(index, responses[index])}; nothing of its unit was stored. Mend the {what} "
            "or the prompt; eval.grader_timeout_s sets the time for a response"
        ) from error
    return grades


def _asked(
    process: GraderProcess, responses: Sequence[Response], *, timeout_s: float
) -> Iterator[float]:
    rows = [(one.text, one.reference, one.metadata) for one in responses]
    for answer in process.answers(rows, len(rows), timeout_s):
        yield float(answer["value"])


def _spanned(
    process: GraderProcess, responses: Sequence[Response], *, timeout_s: float
) -> Iterator[float]:
    rows = [(one.text, None, None) for one in responses]
    answers: Iterator[dict[str, Any]] = process.answers(rows, len(rows), timeout_s)
    for one, answer in zip(responses, answers, strict=True):
        begin, end = answer["span"]
        yield same_text(one.text[begin:end], one.reference or "") if begin >= 0 else 0.0


def _reference(choice: GraderChoice, index: int, response: Response) -> str:
    if response.reference is None:
        raise ConfigError(
            f"{choice} cannot grade {_where(index, response)}: it has no "
            "'reference', which this grader compares with. Add one to every row of prompts.eval, "
            "or use a grader of your own"
        )
    return response.reference


def _where(index: int, response: Response) -> str:
    return f"row {index} of its unit, prompt {excerpt(response.prompt_id, 100)!r}"
