"""From the catalogue of figures and the frames of runs to charts: one for each figure. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from pipeline.report.catalogue import GROUPS, LEARNING, Figure, Group, Series
from pipeline.report.drawing.charts import Chart, points_of
from pipeline.report.figures import RunFigures
from pipeline.report.stored.rounds import thinned
from pipeline.report.written import written

OF_NO_CHART = frozenset({"step", "round", "tokens", "skipped"})
"""Columns of steps that are no figures of learning."""

MOST_OTHERS = 24
"""Further figures of steps that are drawn."""

START = "start"
"""The level of the student as it came."""

SPENT = "teacher_tokens_so_far"


@dataclass(frozen=True)
class Plotted:
    """A group of the catalogue: its charts, and the figures that no run has stored."""

    group: Group
    charts: tuple[tuple[Figure, Chart], ...]
    absent: tuple[Figure, ...]


def plotted(runs: Sequence[RunFigures]) -> list[Plotted]:
    """Return the charts of all groups."""
    found = []
    for group in (*(one for one in GROUPS if one.by == "round"), _with_others(LEARNING, runs)):
        frames = [(run.name, _frame(run, group)) for run in runs]
        charts, absent = [], []
        for figure in group.figures:
            points = _points(figure, group, frames)
            if points.is_empty():
                absent.append(figure)
            elif figure.still is None or bool((points["value"] != figure.still).any()):
                charts.append((figure, _chart(figure, group, points, runs)))
        found.append(Plotted(group, tuple(charts), tuple(absent)))
    return found


def _with_others(group: Group, runs: Sequence[RunFigures]) -> Group:
    """Return the group of steps with every further figure that some learner stored, by its name."""
    known = {name for one in GROUPS for figure in one.figures for name in figure.names}
    stored = {name for run in runs for name in run.steps.columns} - known - OF_NO_CHART
    words = "As the learner stored it."
    others = [Figure(name, words, "number", (Series(name, name),)) for name in sorted(stored)]
    return replace(group, figures=(*group.figures, *others[:MOST_OTHERS]))


def _frame(run: RunFigures, group: Group) -> pl.DataFrame:
    return thinned(run.steps) if group.by == "step" else run.rounds


def _chart(figure: Figure, group: Group, points: pl.DataFrame, runs: Sequence[RunFigures]) -> Chart:
    x_title = "teacher tokens so far" if figure.kind == "cost" else group.by
    if figure.kind == "stack" and len(runs) > 1:
        return _totals(figure, points)
    return Chart(
        title=figure.title,
        points=points,
        form=figure.form,
        x_title=x_title,
        kind="stack" if figure.kind == "stack" else "line",
        log=figure.log and _spans(points["value"]),
        rules=tuple(_levels(runs)) if "accuracy" in figure.names else (),
    )


def _totals(figure: Figure, points: pl.DataFrame) -> Chart:
    """Return one bar for each run: stacks of several runs would hide each other."""
    sums = points.group_by("run", "series", maintain_order=True).agg(pl.col("value").sum())
    rows = [
        {
            **row,
            "x": row["run"],
            "label": f"{row['run']}, {row['series']}: {written(row['value'], figure.form)} "
            "in all rounds",
        }
        for row in sums.to_dicts()
    ]
    frame = points_of(rows, named=True)
    return Chart(figure.title, frame, figure.form, "all rounds", kind="bars")


def _points(
    figure: Figure, group: Group, frames: Sequence[tuple[str, pl.DataFrame]]
) -> pl.DataFrame:
    """Return the points of a figure, of each run and series in turn; none where none is stored."""
    x = SPENT if figure.kind == "cost" else group.by
    rows = [
        row
        for run, frame in frames
        for one in figure.series
        for row in _series(one, figure, run, x, frame)
    ]
    return points_of(rows)


def _series(
    one: Series, figure: Figure, run: str, x: str, frame: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    if one.name not in frame.columns or x not in frame.columns:
        return
    low, high = one.low or f"{one.name}_low", one.high or f"{one.name}_high"
    ends = low in frame.columns
    known = frame.filter(pl.col(one.name).is_not_null())
    for row in known.to_dicts():
        ends_of = (row[low], row[high]) if ends else (None, None)
        yield {
            "x": row[x],
            "value": row[one.name],
            "low": ends_of[0],
            "high": ends_of[1],
            "run": run,
            "series": one.label,
            "label": _label(row, one, figure, run, ends_of),
        }


def _label(
    row: dict[str, Any], one: Series, figure: Figure, run: str, ends: tuple[Any, Any]
) -> str:
    """Return what is told of a point under the pointer."""
    step = f"step {row['step']}, " if "step" in row else ""
    place = f"{step}round {row['round']}"
    words = f"{run}, {place}, {one.label}: {written(row[one.name], figure.form)}"
    if ends[0] is not None:
        words += f" ({written(ends[0], figure.form)} to {written(ends[1], figure.form)})"
    if figure.kind == "cost":
        words += f" after {row[SPENT]:,.0f} teacher tokens"
    return words


def _levels(runs: Sequence[RunFigures]) -> Iterator[dict[str, Any]]:
    """Yield the accuracies to compare with: that at the start, and those of teachers.

    A level that several runs share is one.
    """
    found: dict[tuple[str, float], list[str]] = {}
    for run in runs:
        graded = {f"teacher {name}": one for name, one in run.records.teachers.items()}
        if run.records.start is not None:
            graded[START] = run.records.start
        for words, one in graded.items():
            found.setdefault((words, one.accuracy), []).append(run.name)
    levels = [words for words, _ in found]
    for (words, value), names in found.items():
        whose = f" of {', '.join(names)}" if levels.count(words) > 1 else ""
        label = f"{words}{whose} {written(value, 'share')}"
        yield {"value": value, "label": label, "side": "left" if words == START else "right"}


def _spans(values: pl.Series) -> bool:
    """Return whether positive values differ by so much that small ones would not be seen."""
    positive = values.filter(values > 0)
    if positive.is_empty():
        return False
    return float(positive.max()) > 30 * float(positive.min())  # type: ignore[arg-type] # floats
