"""The page's part on where the KL sits: by position, by token, by family of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.report.drawing.charts import Chart, points_of
from pipeline.report.figures import Places, RunFigures
from pipeline.report.markup import Html, tag
from pipeline.report.tokens.places import worst_positions
from pipeline.report.transcripts.pieces import Pieces
from pipeline.report.written import written

SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
"""What stands for white space where a token is named."""

LONGEST = 24
"""Characters of a place's name."""


@dataclass(frozen=True)
class Part:
    """One chart with its ten worst places."""

    chart: Chart
    meaning: str
    table: Html


def where(runs: Sequence[tuple[RunFigures, Pieces]]) -> list[Part]:
    """Return the charts and tables of where the KL sits, of the newest round that was looked at."""
    known = [(run, pieces) for run, pieces in runs if run.places and len(run.places[-1].positions)]
    if not known:
        return []
    found = [_positions([run for run, _ in known])]
    for run, pieces in known:
        newest, whose = run.places[-1], f", {run.name}" if len(runs) > 1 else ""
        names = {one: _token(pieces, one) for one in newest.tokens["place"]}
        words = (
            f"Round {newest.round}: the sampled tokens that carry most of the KL, their mean and "
            "their share of it."
        )
        found.append(_bars(f"By token{whose}", words, newest.tokens, names, run.name))
        if newest.families is not None and run.column is not None:
            families = {one: str(one) for one in newest.families["place"]}
            words = f"Round {newest.round}: prompts by their column {run.column!r}."
            title = f"By prompt family{whose}"
            found.append(_bars(title, words, newest.families, families, run.name))
    return found


def _positions(runs: Sequence[RunFigures]) -> Part:
    rows, worst = [], []
    for run in runs:
        shown = run.places if len(runs) == 1 else run.places[-1:]
        for one in shown:
            rows += [_point(run.name, one, row) for row in one.positions.to_dicts()]
        newest = worst_positions(run.places[-1].positions)
        whose = f"{run.name}, " if len(runs) > 1 else ""
        worst += [(f"{whose}{row['place']}", row) for row in newest.to_dicts()]
    chart = Chart("By position", points_of(rows), "nats", "token of the response")
    looked = ", ".join(
        f"{run.places[-1].rows} sequences of round {run.places[-1].round}" for run in runs
    )
    words = f"Mean KL of the sampled tokens at each place of a response; worst ten: {looked}."
    return Part(chart, words, _table("position", worst))


def _point(run: str, one: Places, row: dict[str, float]) -> dict[str, object]:
    label = (
        f"{run}, round {one.round}, from token {row['place']:.0f}: "
        f"{written(row['kl'], 'nats')} nats over {row['tokens']:,} tokens"
    )
    return {
        "x": row["place"],
        "value": row["kl"],
        "run": run,
        "series": f"round {one.round}",
        "label": label,
    }


def _bars(title: str, words: str, places: pl.DataFrame, names: dict[object, str], run: str) -> Part:
    rows, worst = [], []
    for row in places.to_dicts():
        name = names[row["place"]]
        label = (
            f"{name}: mean {written(row['kl'], 'nats')} nats over {row['tokens']:,} tokens, "
            f"{_share(row['share'])} of the KL"
        )
        facts = {"value": row["kl"], "run": run, "series": run}
        rows.append({"x": name, **facts, "label": label})
        worst.append((name, row))
    points = points_of(rows, named=True)
    return Part(Chart(title, points, "nats", "mean KL", kind="bars"), words, _table("place", worst))


def _table(title: str, rows: Sequence[tuple[str, dict[str, float]]]) -> Html:
    head = [tag("th", words) for words in (title, "mean KL", "tokens", "share of the KL")]
    body = [
        tag(
            "tr",
            tag("td", name, class_="piece"),
            tag("td", written(row["kl"], "nats")),
            tag("td", f"{row['tokens']:,}"),
            tag("td", _share(row["share"])),
        )
        for name, row in rows
    ]
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))


def _share(value: float | None) -> str:
    return "no share" if value is None else f"{value:.1%}"


def _token(pieces: Pieces, token: int) -> str:
    text = pieces.one(token)
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return f"{''.join(SHOWN.get(c, c) for c in short)}  {token}"
