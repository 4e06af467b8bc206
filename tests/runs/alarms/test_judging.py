"""Rules held against figures: what raises an alarm, since when, and what is within errors."""

import pytest

from pipeline.runs.alarms.figures import FIGURES, Value
from pipeline.runs.alarms.judging import SURE, judged
from pipeline.runs.alarms.rules import RULES, Rule
from pipeline.runs.alarms.seen import NEWEST, judged_rounds

START = 10.0
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def beyond(rule: Rule, part: float) -> float:
    """Return a figure beyond a rule's limit by a part of its size, or within where it is < 0."""
    if rule.test in ("above", "below"):
        away = part * (rule.limit or 1.0)
        return rule.limit + (away if rule.test == "above" else -away)
    away = part * START * rule.limit
    return (
        START * (1.0 + rule.limit) + away
        if rule.test == "up by"
        else (START * (1.0 - rule.limit) - away)
    )


def names(rule: Rule, *values: Value) -> list[str]:
    history = list(enumerate({rule.figure: value} for value in values))
    return [alarm.name for alarm in judged(history)]


@by_name
def test_a_figure_beyond_its_limit_is_named_with_what_to_try(rule: Rule) -> None:
    start = Value(START) if "by" in rule.test else Value(beyond(rule, 0.1))
    found = judged([(3, {rule.figure: start}), (4, {rule.figure: Value(beyond(rule, 0.1))})])
    alarm = next(one for one in found if one.name == rule.name)
    assert alarm.since == (4 if "by" in rule.test else 3)
    assert alarm.advice == rule.advice and "{" not in alarm.sentence
    assert rule.figure in FIGURES


@by_name
def test_a_figure_within_its_limit_or_its_error_raises_nothing(rule: Rule) -> None:
    within = beyond(rule, -0.1)
    start = Value(START) if "by" in rule.test else Value(within)
    assert rule.name not in names(rule, start, Value(within))
    value = beyond(rule, 0.1)
    size = START if "by" in rule.test else 1.0
    unsure = Value(value, error=0.11 * size * max(rule.limit, 1.0) / SURE)
    assert rule.name not in names(rule, start, unsure)


def test_an_alarm_that_has_passed_is_not_told_and_one_that_lasts_tells_when_it_began() -> None:
    rule = next(one for one in RULES if one.name == "cut_off")
    low, high = Value(0.1), Value(0.9)
    assert "cut_off" not in names(rule, high, high, low)
    history = [(n, {"cut_off": v}) for n, v in enumerate((high, low, high, high))]
    assert [(a.name, a.since, a.value) for a in judged(history)] == [("cut_off", 2, 0.9)]


def test_an_alarm_stands_until_a_figure_is_within_its_limit_again() -> None:
    rule = next(one for one in RULES if one.name == "cut_off")
    sure, unsure, within = Value(0.9, 0.01), Value(0.6, 0.1), Value(0.4, 0.1)
    history = [(n, {"cut_off": v}) for n, v in enumerate((within, unsure, sure, unsure))]
    assert [(one.name, one.since, one.value) for one in judged(history)] == [("cut_off", 1, 0.6)]
    assert "cut_off" not in names(rule, sure, unsure, within)
    assert "cut_off" not in names(rule, sure, within, unsure)


@pytest.mark.parametrize(
    ("gap", "named"),
    [
        (Value(0.3, 0.01), []),
        (Value(0.45, 0.01), ["length_up"]),
        (Value(0.3, 0.1), ["length_up"]),
        (None, ["length_up"]),
    ],
    ids=["closer", "a little closer", "perhaps closer", "not known"],
)
def test_a_student_may_become_as_long_as_its_teacher(gap: Value | None, named: list[str]) -> None:
    first = {"response_tokens": Value(20.0, 0.5), "reverse_kl": Value(0.5, 0.01)}
    later = {"response_tokens": Value(40.0, 0.5)} | ({} if gap is None else {"reverse_kl": gap})
    assert [one.name for one in judged([(0, first), (1, later)])] == named


@pytest.mark.parametrize(
    ("end", "now", "named"),
    [(Value(1.5, 0.2), 40.0, []), (Value(-1.5, 0.2), 40.0, ["length_up"])]
    + [(Value(0.5, 0.2), 40.0, ["length_up"]), (Value(-1.5, 0.2), 10.0, [])]
    + [(Value(1.5, 0.2), 10.0, ["length_down"])],
)
def test_lengths_may_change_as_teachers_would_end_responses(
    end: Value, now: float, named: list[str]
) -> None:
    first = {"response_tokens": Value(20.0, 0.5), "end_gap": end}
    later = {"response_tokens": Value(now, 0.5), "end_gap": Value(0.0)}
    assert [one.name for one in judged([(0, first), (1, later)])] == named


def test_responses_that_come_to_be_cut_off_are_named_though_most_still_end() -> None:
    history = [(n, {"cut_off": v}) for n, v in enumerate((Value(0.05, 0.01), Value(0.3, 0.02)))]
    assert [one.name for one in judged(history)] == ["cut_off_rising"]
    few = [(n, {"cut_off": v}) for n, v in enumerate((Value(0.05, 0.03), Value(0.2, 0.05)))]
    assert judged(few) == []


def test_a_teacher_that_the_student_has_reached_is_not_taken_for_the_student() -> None:
    rule = next(one for one in RULES if one.name == "teacher_is_student")
    assert names(rule, Value(1.0), Value(0.001)) == []
    assert names(rule, Value(0.001), Value(0.001)) == ["teacher_is_student"]


def test_what_cannot_be_trusted_is_told_first() -> None:
    told = {"cut_off": Value(1.0), "in_place": Value(0.1)}
    assert [one.severity for one in judged([(0, told)])] == ["wrong", "look"]


def test_what_is_read_of_a_long_run_is_its_first_and_newest_rounds() -> None:
    assert judged_rounds(range(1000)) == [0, *range(1000 - NEWEST, 1000)]
    assert judged_rounds(range(2)) == [0, 1] and judged_rounds([]) == []
