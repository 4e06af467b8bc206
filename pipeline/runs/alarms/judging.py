"""Alarms of a run: rules held against the figures of its newest rounds. Pure, but for `run_alarms`.

Promises: no difference within errors raises one. One that was raised stands until a round's figure
is within the limit again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from pipeline.runs.alarms.figures import Value, figures_of, figures_of_teacher
from pipeline.runs.alarms.rules import RULES, Rule, Severity
from pipeline.runs.alarms.seen import Seen, begun_rounds, look_at
from pipeline.runs.run import Run

SURE = 3.0
"""Standard errors that a figure must be beyond its limit."""

NEARER = Rule("nearer", "reverse_kl", "down by", 0.20, "", "")
"""What a student does that comes closer to its teachers; no alarm."""

History = Sequence[tuple[int, Mapping[str, Value]]]
"""Figures of rounds, oldest first."""


@dataclass(frozen=True)
class Alarm:
    """One thing that looks wrong."""

    name: str
    severity: Severity
    words: str
    """What was found, with its figure: a sentence without its end."""
    value: float
    limit: float
    since: int
    """Round in which it began, of those that are judged."""
    step: int | None
    """Optimizer step, where it is of one."""
    advice: str
    """What to try."""

    @property
    def sentence(self) -> str:
        """Return it as a line for people."""
        step = "" if self.step is None else f", step {self.step}"
        return f"{self.words} (since round {self.since}{step}). {self.advice}."


def run_alarms(run: Run, rounds: Sequence[int] | None = None) -> list[Alarm]:
    """Return what looks wrong in a run, the worst first.

    Args:
        run: the run.
        rounds: those that have begun, in order; None looks for them.

    Raises:
        DataError: a manifest is damaged.
    """
    seen = look_at(run, begun_rounds(run) if rounds is None else rounds)
    found = judged([(one.round, figures_of(one)) for one in seen])
    if len(run.config.teachers) > 1:
        found += _of_teachers(seen, {one.name for one in found})
    return sorted(found, key=_rank)


def _of_teachers(seen: Sequence[Seen], told: set[str]) -> list[Alarm]:
    """Return what looks wrong with single teachers, and is not told of all of them together."""
    return [
        replace(alarm, words=f"Teacher {name}: {alarm.words}")
        for name in sorted({scores.teacher for one in seen for scores in one.scores})
        for alarm in judged([(one.round, figures_of_teacher(one, name)) for one in seen])
        if alarm.name not in told
    ]


def judged(history: History) -> list[Alarm]:
    """Return the alarms that figures of rounds raise, the worst first."""
    found = [alarm for rule in RULES if (alarm := _alarm(rule, history)) is not None]
    return sorted(found, key=_rank)


def _rank(alarm: Alarm) -> bool:
    return alarm.severity != "wrong"


def _alarm(rule: Rule, history: History) -> Alarm | None:
    known = [(index, told[rule.figure]) for index, told in history if rule.figure in told]
    known = known[:1] if rule.only_first else known
    if not known or (rule.only_first and known[0][0] != history[0][0]):
        return None
    start, now = known[0][1], known[-1][1]
    meant = _meant_rounds(rule, history) if rule.unless_taught else set[int]()
    beyond = takewhile(
        lambda one: one[0] not in meant and _breaks(rule, one[1], start, sure=0.0), reversed(known)
    )
    lasting = list(beyond)
    if not any(_breaks(rule, value, start, sure=SURE) for _, value in lasting):
        return None
    since = lasting[-1]
    written = {"now": format(now.mean, rule.form), "start": format(start.mean, rule.form)}
    return Alarm(
        name=rule.name,
        severity=rule.severity,
        words=rule.words.format(**written),
        value=now.mean,
        limit=rule.limit,
        since=since[0],
        step=since[1].step,
        advice=rule.advice,
    )


def _meant_rounds(rule: Rule, history: History) -> set[int]:
    """Return the rounds in which other lengths are what the teachers teach.

    Those in which the student is surely closer to them than at first; and all, where the first
    responses ended too readily or too reluctantly for the teachers.
    """
    end = history[0][1].get("end_gap", Value(0.0))
    if (end.mean if rule.test == "up by" else -end.mean) > SURE * end.error:
        return {index for index, _ in history}
    known = [(index, told[NEARER.figure]) for index, told in history if NEARER.figure in told]
    return {index for index, gap in known if _breaks(NEARER, gap, known[0][1], sure=SURE)}


def _breaks(rule: Rule, now: Value, start: Value, *, sure: float) -> bool:
    """Return whether a figure is beyond a rule's limit by so many of its errors."""
    if rule.test == "above":
        return now.mean - sure * now.error > rule.limit
    if rule.test == "below":
        return now.mean + sure * now.error < rule.limit
    factor = 1.0 + rule.limit if rule.test == "up by" else 1.0 - rule.limit
    error = sure * math.hypot(now.error, factor * start.error)
    if rule.test == "up by":
        return now.mean - error > factor * start.mean and now.mean > rule.at_least
    return now.mean + error < factor * start.mean
