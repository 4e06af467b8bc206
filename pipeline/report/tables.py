"""Tables of the page: shares of time, differences between runs, every figure of every round."""

from collections.abc import Sequence

from pipeline.report.catalogue import COST, GROUPS, Figure, Form, Series
from pipeline.report.figures import RunFigures
from pipeline.report.markup import Html, tag
from pipeline.report.stored.records import STAGES
from pipeline.report.written import written

SUMMED = frozenset(one.name for f in COST.figures if f.kind == "stack" for one in f.series)
"""Figures of which the sum over rounds counts, not the newest value."""


def known_columns(runs: Sequence[RunFigures]) -> list[tuple[Figure, Series]]:
    """Return the figures of rounds that some run has, each once."""
    seen: dict[str, tuple[Figure, Series]] = {}
    for group in GROUPS:
        for figure in group.figures:
            for one in figure.series:
                seen.setdefault(one.name, (figure, one))
    there = {n for run in runs for n in run.rounds.columns if run.rounds[n].drop_nulls().len()}
    return [pair for name, pair in seen.items() if name in there]


def round_table(run: RunFigures) -> Html:
    """Return a row for each round, with every figure of the catalogue that is stored."""
    columns = known_columns([run])
    head = [tag("th", "round"), *(tag("th", _title(f, s)) for f, s in columns)]
    rows = [
        tag("tr", tag("td", str(row["round"])), *(_cell(row[s.name], f.form) for f, s in columns))
        for row in run.rounds.to_dicts()
    ]
    return _table(head, rows)


def stage_table(run: RunFigures) -> Html:
    """Return a row for each stage: rounds done, seconds, its share of time, tokens per second."""
    calls = [one.calls for one in run.records.rounds]
    total = sum(float(frame["seconds"].sum()) for frame in calls)
    rows = []
    for stage in STAGES:
        mine = [frame.filter(frame["stage"] == stage) for frame in calls]
        seconds = sum(float(frame["seconds"].sum()) for frame in mine)
        tokens = sum(int(frame["tokens"].sum()) for frame in mine)
        start = sum(float(frame["engine_start_s"].sum()) for frame in mine)
        if not seconds:
            continue
        rows.append(
            tag(
                "tr",
                tag("td", stage),
                _cell(sum(len(frame) for frame in mine), "count"),
                _cell(seconds, "seconds"),
                _cell(seconds / total, "share"),
                _cell(start, "seconds"),
                _cell(tokens, "count"),
                _cell(tokens / seconds, "number"),
            )
        )
    titles = ("stage", "calls", "time", "share of time", "start of engines", "tokens", "tokens / s")
    return _table([tag("th", title) for title in titles], rows)


def difference_table(runs: Sequence[RunFigures]) -> Html:
    """Return a row for each figure: its newest value, or its sum, in each run."""
    head = [tag("th", "figure"), *(tag("th", run.name) for run in runs)]
    trained = [sum(r.train is not None for r in run.records.rounds) for run in runs]
    rows = [tag("tr", tag("td", "Rounds trained"), *(tag("td", str(n)) for n in trained))]
    for figure, one in known_columns(runs):
        values = [_value(run, one.name) for run in runs]
        cells = [_cell(values[0], figure.form)]
        cells += [_against(value, values[0], figure.form) for value in values[1:]]
        summed = ", all rounds" if one.name in SUMMED else ""
        rows.append(tag("tr", tag("td", f"{_title(figure, one)}{summed}"), *cells))
    return _table(head, rows)


def _value(run: RunFigures, name: str) -> float | None:
    if name not in SUMMED:
        return run.last.get(name)
    known = run.rounds[name].drop_nulls() if name in run.rounds.columns else None
    return None if known is None or known.is_empty() else float(known.sum())


def _against(value: float | None, first: float | None, form: Form) -> Html:
    words = written(value, form)
    if value is None or first is None:
        return tag("td", words)
    if value == first:
        return tag("td", words, tag("span", " =", class_="soft"))
    sign = "+" if value > first else "−"
    return tag(
        "td", words, tag("span", f" {sign}{written(abs(value - first), form)}", class_="soft")
    )


def _title(figure: Figure, one: Series) -> str:
    return figure.title if len(figure.series) == 1 else f"{figure.title}: {one.label}"


def _cell(value: float | None, form: Form) -> Html:
    return tag("td", written(value, form), class_="none" if value is None else None)


def _table(head: Sequence[Html], rows: Sequence[Html]) -> Html:
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
