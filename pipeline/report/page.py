"""The page: one HTML file that needs nothing beside it.

Promises: it asks no network for anything, and its policy forbids it; only the scripts of this room
run, and no text of others is anything but text.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from pipeline.report.drawing.charts import Chart, draw
from pipeline.report.drawing.plots import Plotted, plotted
from pipeline.report.figures import RunFigures
from pipeline.report.findings import findings
from pipeline.report.markup import Html, joined, raw, tag
from pipeline.report.tables import difference_table, round_table, stage_table
from pipeline.report.transcripts.packing import Pack
from pipeline.report.transcripts.pieces import Pieces
from pipeline.report.transcripts.section import transcript_section
from pipeline.report.where import Part, where
from pipeline.report.words import headlines

WHERE = "Where the KL sits"

SCRIPTS = ("page.js", "transcripts.js")

STYLES = ("page.css", "transcripts.css")


@dataclass(frozen=True)
class View:
    """What the page has of one run."""

    figures: RunFigures
    pieces: Pieces
    """Its ids as text."""
    untold: str | None
    """Why they are numbers, where they are."""
    transcripts: Pack


def page(views: Sequence[View], *, written_at: str) -> str:
    """Return the page of one run, or of several that are compared.

    Args:
        views: the runs.
        written_at: when it was made, in words.
    """
    runs = [view.figures for view in views]
    places = where([(view.figures, view.pieces) for view in views])
    told = transcript_section([(v.figures.name, v.transcripts, v.untold) for v in views])
    names = ", ".join(run.name for run in runs)
    groups = plotted(runs)
    body = [
        tag(
            "header",
            tag("h1", names),
            tag("p", f"Report of stored records, {written_at}", class_="soft"),
        ),
        _navigation(groups, [len(runs) > 1, bool(places), told is not None]),
        tag(
            "main",
            tag("div", *(_head(run, several=len(runs) > 1) for run in runs), id="top"),
            _compared(runs) if len(runs) > 1 else None,
            *(_group(one) for one in groups if one.charts),
            _where(places) if places else None,
            told,
            _rounds(runs),
        ),
        tag("footer", _not_stored(groups)),
        *(tag("script", raw(_asset(name))) for name in SCRIPTS),
    ]
    return f"<!doctype html>\n{tag('html', _top(names), tag('body', *body), lang='en')}\n"


def _top(names: str) -> Html:
    style = "".join(map(_asset, STYLES))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {' '.join(_digest(_asset(name)) for name in SCRIPTS)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{names}: opd report"),
        tag("style", raw(style)),
    )


def _navigation(groups: Sequence[Plotted], there: Sequence[bool]) -> Html:
    shown = [(_anchor(one), one.group.title) for one in groups if one.charts]
    some = zip(
        ("compare", "where", "transcripts"), ("Differences", WHERE, "Transcripts"), strict=True
    )
    compared, *later = [
        [link] if is_there else [] for link, is_there in zip(some, there, strict=True)
    ]
    links = [
        ("top", "In words"),
        *compared,
        *shown,
        *later[0],
        *later[1],
        ("rounds", "All figures"),
    ]
    found = [tag("a", words, href=f"#{place}") for place, words in links]
    return tag("nav", tag("div", *found), aria_label="Parts of the report")


def _head(run: RunFigures, *, several: bool) -> Html:
    cards = [
        tag("div", tag("h3", title), *(tag("p", line) for line in lines), class_="card")
        for title, lines in headlines(run)
    ]
    title = tag("h2", run.name) if several else None
    return tag("section", title, tag("div", *cards, _wrong(run), class_="cards"))


def _wrong(run: RunFigures) -> Html:
    items = [
        tag(
            "li",
            tag("b", one.figure, class_=one.severity),
            "" if one.since is None else f", since round {one.since}",
            f". {one.advice}.",
        )
        for one in findings(run)
    ]
    shown = tag("ul", *items) if items else tag("p", "Nothing that these records show.")
    return tag("div", tag("h3", "What looks wrong"), shown, class_="card findings")


def _compared(runs: Sequence[RunFigures]) -> Html:
    words = "The newest value of each figure, and how it differs from that of the first run."
    return tag(
        "section",
        tag("h2", "Differences"),
        tag("p", words, class_="soft"),
        tag("div", difference_table(runs), class_="scroll"),
        id="compare",
    )


def _group(one: Plotted) -> Html:
    shown = [_drawn(chart, figure.meaning) for figure, chart in one.charts]
    words = tag("p", one.group.words, class_="soft")
    charts = tag("div", *shown, class_="charts")
    return tag("section", tag("h2", one.group.title), words, charts, id=_anchor(one))


def _drawn(chart: Chart, meaning: str, *below: Html) -> Html:
    return tag(
        "figure",
        tag("h3", chart.title),
        tag("p", meaning),
        draw(chart),
        tag("p", class_="told", aria_live="polite"),
        *below,
        class_="chart",
        tabindex="0",
        aria_label=f"{chart.title}. Arrow keys go from point to point.",
    )


def _where(parts: Sequence[Part]) -> Html:
    words = (
        "KL is that of the sampled tokens, log q − log p, where q is what the student sampled from "
        "and p its teacher. A negative mean says that the teacher was surer there."
    )
    shown = [
        _drawn(
            one.chart,
            one.meaning,
            tag("details", tag("summary", "The worst ten"), tag("div", one.table, class_="scroll")),
        )
        for one in parts
    ]
    title, charts = tag("h2", WHERE), tag("div", *shown, class_="charts")
    return tag("section", title, tag("p", words, class_="soft"), charts, id="where")


def _rounds(runs: Sequence[RunFigures]) -> Html:
    tables = []
    for run in runs:
        tables += [
            tag("h3", run.name),
            tag("div", stage_table(run), class_="scroll"),
            tag(
                "details",
                tag("summary", "Every figure of every round"),
                tag("div", round_table(run), class_="scroll"),
            ),
        ]
    return tag("section", tag("h2", "All figures"), *tables, id="rounds")


def _not_stored(groups: Sequence[Plotted]) -> Html:
    absent = {figure.title for one in groups for figure in one.absent}
    known = {figure.title for one in groups for figure, _ in one.charts}
    missing = sorted(absent - known)
    words = f"Not stored, so not shown: {', '.join(missing)}." if missing else None
    return joined(
        None if words is None else tag("p", words, id="absent"),
        tag("p", "Made by opd report from stored records alone. It asks no network for anything."),
    )


def _anchor(one: Plotted) -> str:
    return one.group.title.lower().replace(" ", "-")


def _asset(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
