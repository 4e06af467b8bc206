"""`[schedule]`: what changes from round to round, as functions of the round alone. Pure."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from schemas.config.section import MOST, Fraction, Name, Section, later

Value = TypeVar("Value")

Round = Annotated[int, Field(ge=0, le=MOST)]

Point = tuple[Round, Annotated[float, Field(ge=-1e6, le=1e6)]]


def _in_order(points: tuple[tuple[int, Any], ...]) -> tuple[tuple[int, Any], ...]:
    rounds = [point[0] for point in points]
    if any(after < before for before, after in pairwise(rounds)):
        raise ValueError(f"the rounds of its points are {rounds}: write them in rising order")
    if any(first == third for first, third in zip(rounds, rounds[2:], strict=False)):
        raise ValueError("three points are of one round: two make a jump, leave the others out")
    return points


def _one_each(points: tuple[tuple[int, Any], ...]) -> tuple[tuple[int, Any], ...]:
    rounds = [point[0] for point in points]
    twice = [number for number in rounds if rounds.count(number) > 1]
    if twice:
        raise ValueError(f"two steps are of round {twice[0]}: remove one")
    return _in_order(points)


MOST_POINTS = 256
"""Most points of a schedule."""

Line = Annotated[
    tuple[Point, ...], Field(min_length=1, max_length=MOST_POINTS), AfterValidator(_in_order)
]
"""Points [round, value]: linear between them, the first value before, the last one after. Two
points of one round are a jump."""

Steps = Annotated[
    tuple[Point, ...], Field(min_length=1, max_length=MOST_POINTS), AfterValidator(_one_each)
]
"""Points [round, value]: each value from its round on, the first one before too."""

Names = Annotated[
    tuple[tuple[Round, Name], ...],
    Field(min_length=1, max_length=MOST_POINTS),
    AfterValidator(_one_each),
]


def on_line(points: tuple[tuple[int, float], ...], round_index: int) -> float:
    """Return the value of a line at a round; at a jump the later one."""
    before = [point for point in points if point[0] <= round_index]
    after = [point for point in points if point[0] > round_index]
    if not before or not after:
        return float((before or [after[0]])[-1][1])
    (first, low), (second, high) = before[-1], after[0]
    return float(low + (high - low) * ((round_index - first) / (second - first)))


def at_step(points: tuple[tuple[int, Value], ...], round_index: int) -> Value:
    """Return the value of steps at a round."""
    return [point[1] for point in points if point[0] <= max(round_index, points[0][0])][-1]


class LossSchedule(Section):
    """`[schedule.loss]`: values of `[loss]` by round, which count in the place of its own."""

    beta: Line | None = later(None)
    """`loss.beta` as points [round, value]: linear between them; two of one round are a jump."""
    skew: Line | None = later(None)
    """`loss.skew`, likewise."""
    alpha: Line | None = later(None)
    """`loss.alpha`, likewise."""
    rl_weight: Line | None = later(None)
    """`loss.rl_weight`, likewise."""
    distill_weight: Line | None = later(None)
    """`loss.distill_weight`, likewise."""
    temperature: Steps | None = later(None)
    """`loss.temperature` as steps [round, value], each from its round on: log Z is scored at the
    temperatures of `score.temperatures` alone."""

    def at(self, round_index: int) -> dict[str, float]:
        """Return the values of a round, by the keys of `[loss]`."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        found = {name: points for name, points in given.items() if points is not None}
        return {
            name: float((at_step if name == "temperature" else on_line)(points, round_index))
            for name, points in found.items()
        }

    @property
    def turns(self) -> set[int]:
        """Return the rounds at which values are largest or smallest: those of the points."""
        given = [getattr(self, name) or () for name in type(self).model_fields]
        rounds = {point[0] for points in given for point in points}
        return rounds | {number - 1 for number in rounds if number}  # the end before a jump


class PromptsSchedule(Section):
    """`[schedule.prompts]`: prompts drawn by what the rounds before measured of them."""

    by: Literal["kl", "reward"]
    """What makes a prompt hard: `kl` = a large KL of student to teacher on its responses, `reward`
    = a low mean reward. The newest round in which a prompt was drawn counts."""
    hardness: Line
    """Points [round, value] from 0 to 1: 0 prefers the easiest prompts, 1 the hardest, 0.5 none;
    linear between them. A prompt that was never drawn counts as the middle one."""
    floor: Fraction
    """Share of its uniform chance that every prompt keeps, whatever its difficulty."""
    hard_teacher: Name | None = later(None)
    """Who scores the hardest prompts in the place of the round's teacher, where they name none."""
    hard_share: Annotated[float, Field(gt=0.0, le=1.0)] = later(0.25)
    """Share of the prompts whose difficulty is known that counts as the hardest. Equal ones go
    together, by their middle rank; a prompt that was never drawn is not among them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        outside = [value for _, value in self.hardness if not 0.0 <= value <= 1.0]
        if outside:
            raise ValueError(f"hardness is from 0 to 1 (found {outside[0]:g})")
        if self.hard_teacher is None and self.hard_share != 0.25:
            raise ValueError("hard_share is of the prompts of hard_teacher: name one")
        return self


class ScheduleSection(Section):
    """`[schedule]`: what changes from round to round. A round's values are fixed by its plan."""

    teacher: Names | None = later(None)
    """Steps [round, teacher], each from its round on: who scores prompts that name no teacher."""
    loss: LossSchedule | None = later(None)
    """Values of `[loss]` by round."""
    prompts: PromptsSchedule | None = later(None)
    """Which prompts a round draws; without it each epoch has all of them in a random order."""

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, given: Any) -> Any:
        """Return tables for keys with a dot in them, such as "loss.beta"."""
        if not isinstance(given, dict):
            return given
        opened = {key: value for key, value in given.items() if "." not in str(key)}
        for key in given.keys() - opened.keys():
            table, _, name = str(key).partition(".")
            inside = opened.setdefault(table, {})
            if not isinstance(inside, dict) or name in inside:
                raise ValueError(f"{key!r} is there twice, or {table!r} is no table")
            opened[table] = {**inside, name: given[key]}
        return opened

    def loss_at(self, round_index: int) -> dict[str, float]:
        """Return the values of `[loss]` that a round has instead of its own."""
        return {} if self.loss is None else self.loss.at(round_index)

    def teacher_at(self, round_index: int) -> str | None:
        """Return who scores prompts that name no teacher; None for the run's default."""
        return None if self.teacher is None else at_step(self.teacher, round_index)

    @property
    def turns(self) -> list[int]:
        """Return the rounds at which what is possible must be checked."""
        return sorted({0, *(self.loss.turns if self.loss is not None else ())})
