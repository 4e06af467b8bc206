"""What looks wrong in a run: each finding with its figure, since when, and what to try. Pure.

Owns: the list that the page shows under "what looks wrong". A further alarm is a function of a
run's figures in `CHECKS`.
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
    for change in figures.records.changed:
        yield Finding(
            "wrong",
            f"The configuration is not that of this run: {change}",
            None,
            "Undo the change, or give the new settings a run.name of their own: every stage would "
            "refuse this file",
        )


def _skipped_steps(figures: RunFigures) -> Iterator[Finding]:
    if "skipped_steps" not in figures.rounds.columns:
        return
    rows = [row for row in figures.rounds.to_dicts() if row["skipped_steps"]]
    if rows:
        count = sum(row["skipped_steps"] for row in rows)
        yield Finding(
            "look",
            f"{count:.0f} optimizer steps were skipped, for their loss or gradient was no number",
            rows[0]["round"],
            "Lower train.learning_rate or train.max_grad_norm under another run.name",
        )


def _gone(figures: RunFigures) -> Iterator[Finding]:
    notes = [(one.round, note) for one in figures.records.rounds for note in one.notes]
    for since, note in (*notes, *((None, note) for note in figures.sample.notes)):
        yield Finding("note", f"Left out: {note}", since, "Restore it to see its figures")


CHECKS: tuple[Callable[[RunFigures], Iterator[Finding]], ...] = (
    _changed_settings,
    _skipped_steps,
    _gone,
)
"""Every check, in the order in which equally bad findings are told."""
