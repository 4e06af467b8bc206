"""What looks wrong in a run: each finding with its figure, since when, and what to try. Pure.

Owns: the list that the page shows under "what looks wrong": alarms, of which `opd status` tells
the same, and what only a report can tell, as functions in `CHECKS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.report.figures import RunFigures


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong."""

    severity: Literal["wrong", "look", "note"]
    """`wrong`: results cannot be trusted; `look`: may be; `note`: what the page leaves out."""
    figure: str
    """What was found, with its figure, in words."""
    since: int | None
    """Round in which it began; None where it is of no round."""
    advice: str
    """What to try."""


def findings(figures: RunFigures) -> list[Finding]:
    """Return what looks wrong in a run, the worst first."""
    found = [one for check in CHECKS for one in check(figures)]
    order = ("wrong", "look", "note")
    return sorted(found, key=lambda one: order.index(one.severity))


def _changed_settings(figures: RunFigures) -> Iterator[Finding]:
    if changes := figures.records.changed:
        yield Finding(
            "wrong",
            f"The configuration is not that of this run: {'; '.join(changes)}",
            None,
            "Undo the change, repeat the --set that the run began with, or give the new settings "
            "a run.name of their own: every stage would refuse this file",
        )


def _alarms(figures: RunFigures) -> Iterator[Finding]:
    for alarm in figures.alarms:
        step = "" if alarm.step is None else f", at step {alarm.step}"
        yield Finding(alarm.severity, f"{alarm.words}{step}", alarm.since, alarm.advice)


def _gone(figures: RunFigures) -> Iterator[Finding]:
    notes = [(one.round, note) for one in figures.records.rounds for note in one.notes]
    for since, note in (*notes, *((None, note) for note in figures.sample.notes)):
        yield Finding("note", f"Left out: {note}", since, "Restore it to see its figures")


CHECKS: tuple[Callable[[RunFigures], Iterator[Finding]], ...] = (
    _changed_settings,
    _alarms,
    _gone,
)
"""Every check, in the order in which equally bad findings are told."""
