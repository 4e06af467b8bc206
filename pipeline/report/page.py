"""The page: one HTML file that needs nothing beside it.

Promises: it asks no network for anything, and its policy forbids it; only the scripts of this room
run, and no text of others is anything but text.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from pipeline.report.charts import draw
from pipeline.report.figures import RunFigures
from pipeline.report.findings import findings
from pipeline.report.markup import Html, joined, raw, tag
from pipeline.report.plots import Plotted, plotted
from pipeline.report.tables import difference_table, round_table, stage_table
from pipeline.report.words import headlines

SCRIPTS = ("page.js",)


def page(runs: Sequence[RunFigures], *, written_at: str) -> str:
    """Return the page of one run, or of several that are compared.

    Args:
        runs: their figures.
        written_at: when it was made, in words.
    """
    names = ", ".join(run.name for run in runs)
    groups = plotted(runs)
    body = [
        tag(
            "header",
            tag("h1", names),
            tag("p", f"Report of stored records, {written_at}", class_="soft"),
        ),
        _navigation(groups, several=len(runs) > 1),
        tag("main", *(_head(run, several=len(runs) > 1) for run in runs), *_parts(runs, groups)),
        tag("footer", _not_stored(groups)),
        *(tag("script", raw(_asset(name))) for name in SCRIPTS),
    ]
    return f"<!doctype html>\n{tag('html', _top(names), tag('body', *body), lang='en')}\n"


def _top(names: str) -> Html:
    style = _asset("page.css")
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


def _parts(runs: Sequence[RunFigures], groups: Sequence[Plotted]) -> list[Html]:
    compared = [_compared(runs)] if len(runs) > 1 else []
    return [*compared, *(_group(one) for one in groups if one.charts), _rounds(runs)]


def _navigation(groups: Sequence[Plotted], *, several: bool) -> Html:
    compared = [("compare", "Differences")] if several else []
    places = [*compared, *((_anchor(one), one.group.title) for one in groups if one.charts)]
    links = [("top", "In words"), *places, ("rounds", "All figures")]
    found = [tag("a", words, href=f"#{place}") for place, words in links]
    return tag("nav", tag("div", *found), aria_label="Parts of the report")


def _head(run: RunFigures, *, several: bool) -> Html:
    cards = [
        tag("div", tag("h3", title), *(tag("p", line) for line in lines), class_="card")
        for title, lines in headlines(run)
    ]
    title = tag("h2", run.name) if several else None
    return tag("section", title, tag("div", *cards, _wrong(run), class_="cards"), id="top")


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
    return tag("div", tag("h3", "What looks wrong"), shown, class_="card")


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
    shown = [
        tag(
            "figure",
            tag("h3", figure.title),
            tag("p", figure.meaning),
            draw(chart),
            tag("p", class_="told", aria_live="polite"),
            class_="chart",
            tabindex="0",
            aria_label=f"{figure.title}. Arrow keys go from point to point.",
        )
        for figure, chart in one.charts
    ]
    words = tag("p", one.group.words, class_="soft")
    charts = tag("div", *shown, class_="charts")
    return tag("section", tag("h2", one.group.title), words, charts, id=_anchor(one))


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
