"""Charts as SVG: specifications of Vega-Lite, drawn by vl-convert when the page is made.

Promises: nothing is fetched; colours are variables of the page, so that light and dark are one
drawing; each point says in words what it is, for pointers, keyboards and screen readers.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.report.catalogue import Form
from pipeline.report.markup import Html, escaped, plain, raw
from schemas.errors import ConfigError

WIDTH, HEIGHT = 360, 210
"""Pixels of a chart on a phone; it grows with its column."""

COLOURS = 8
"""Variables `--c0` and up of the page."""

AXES: dict[Form, str] = {
    "share": "~%",
    "nats": "~g",
    "number": ",~r",
    "count": "~s",
    "seconds": "~s",
    "bytes": "~s",
    "tiny": "~g",
}
"""How the marks of an axis are written, in d3's words."""

FRAME: dict[str, Any] = {
    **{name: pl.Float64 for name in ("x", "value", "low", "high")},
    **{name: pl.String for name in ("run", "series", "label")},
}
"""Columns of what is drawn; `x` of bars is a text."""

DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])

SHAPES = ("circle", "square", "triangle-up", "diamond")
"""What tells series apart where colours tell runs apart: their lines, and their points."""

FEW_TICKS = 8
"""Rounds or steps of an axis up to which each has its mark."""

MOST_BARS_WHISKERS = 40
"""Points of a line whose intervals are drawn one by one; of more they are a band."""


@dataclass(frozen=True)
class Chart:
    """What is drawn: a frame with the columns `FRAME`, and how."""

    title: str
    points: pl.DataFrame
    form: Form
    x_title: str
    kind: str = "line"
    """`line`, `stack` of bars at x, or `bars`, one below the other with `x` as a name."""
    log: bool = False
    rules: Sequence[dict[str, Any]] = field(default=())
    """Levels to compare with: `value`, `label`, and at which `side` it is written."""


def points_of(rows: Iterable[Mapping[str, Any]], *, named: bool = False) -> pl.DataFrame:
    """Return the points of a chart, all texts in them plain.

    Args:
        rows: with the keys of `FRAME`; `low` and `high` may be left out.
        named: whether `x` is a name.
    """
    schema = {**FRAME, "x": pl.String} if named else FRAME
    plained = [
        {key: _value(v) for key, v in {"low": None, "high": None, **row}.items()} for row in rows
    ]
    return pl.DataFrame(plained, schema=schema)


def require_library() -> Any:
    """Return the module that draws.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ConfigError(
            "opd report draws its charts with vl-convert-python, which is not installed here "
            f"({error}): run `pip install 'opd[report]'`, or "
            "`pip install --no-deps -r requirements/report.txt`"
        ) from error
    return vl_convert


def draw(chart: Chart) -> Html:
    """Return a chart as an SVG element."""
    found: str = require_library().vegalite_to_svg(specification(chart), allowed_base_urls=[])
    size = re.compile(r' width="[\d.]+" height="[\d.]+"(?= viewBox)')
    svg = size.sub(f' role="group" aria-label="{escaped(chart.title)}"', found, count=1)
    return raw(svg)


def specification(chart: Chart) -> dict[str, Any]:
    """Return a chart in the words of Vega-Lite."""
    points = chart.points
    if chart.log:
        points = points.filter(pl.col("value") > 0)
    if chart.kind == "bars":
        layers = _bars(chart)
    elif chart.kind == "stack":
        layers = _stack(chart)
    else:
        layers = [*_intervals(chart, points), *_lines(chart, points), *_rules(chart)]
    names = points["x"].n_unique() if chart.kind == "bars" else 0
    return {
        "width": WIDTH,
        "height": max(HEIGHT, 60 + 22 * names),
        "autosize": {"type": "fit", "contains": "padding"},
        "background": None,
        "padding": {"left": 10, "right": 12, "top": 6, "bottom": 4},
        "data": {"values": points.to_dicts()},
        "layer": layers,
        "config": CONFIG,
    }


def _lines(chart: Chart, points: pl.DataFrame) -> list[dict[str, Any]]:
    shared = {"x": _x(chart), "y": _y(chart), **_colours(points)}
    many = len(points) > 4 * MOST_BARS_WHISKERS
    return [
        {"mark": {"type": "line", "aria": False, "strokeWidth": 2}, "encoding": shared},
        {
            "mark": {"type": "point", "filled": True, "size": 10 if many else 34, "opacity": 1},
            "encoding": {**shared, "description": {"field": "label"}},
        },
    ]


def _intervals(chart: Chart, points: pl.DataFrame) -> list[dict[str, Any]]:
    if points["low"].null_count() == len(points):
        return []
    ends = {"y": {**_y(chart), "field": "low"}, "y2": {"field": "high"}}
    few = len(points) <= MOST_BARS_WHISKERS
    mark = {"type": "rule", "strokeWidth": 1.5} if few else {"type": "area", "strokeWidth": 0}
    return [
        {
            "mark": {**mark, "aria": False, "opacity": 0.45 if few else 0.18},
            "transform": [{"filter": "isValid(datum.low)"}],
            "encoding": {"x": _x(chart), **ends, **_colours(points)},
        }
    ]


def _rules(chart: Chart) -> list[dict[str, Any]]:
    if not chart.rules:
        return []
    values = [{key: _value(v) for key, v in rule.items()} for rule in chart.rules]
    level = {"data": {"values": values}}
    y = {"field": "value", "type": "quantitative"}
    rule: dict[str, Any] = {
        **level,
        "mark": {"type": "rule", "aria": False, "strokeDash": [4, 4], "color": "var(--faint)"},
        "encoding": {"y": y},
    }
    labels: list[dict[str, Any]] = [
        {
            **level,
            "mark": {"type": "text", "align": side, "dx": room, "dy": -6, "color": "var(--faint)"},
            "transform": [{"filter": f"datum.side == '{side}'"}],
            "encoding": {"y": y, "x": {"value": place}, "text": {"field": "label"}},
        }
        for side, place, room in (("right", "width", 0), ("left", 0, 6))
    ]
    return [rule, *labels]


def _stack(chart: Chart) -> list[dict[str, Any]]:
    x = {
        **_x(chart),
        "type": "ordinal",
        "axis": {"title": chart.x_title, "labelOverlap": True, "labelAngle": 0},
    }
    encoding = {"x": x, "y": {**_y(chart), "stack": "zero"}, **_colours(chart.points, "series")}
    return [{"mark": {"type": "bar"}, "encoding": {**encoding, "description": {"field": "label"}}}]


def _bars(chart: Chart) -> list[dict[str, Any]]:
    """Return bars one below the other, in the order of the frame."""
    axis = {"title": None, "labelLimit": 115}
    y = {"field": "x", "type": "nominal", "sort": None, "axis": axis}
    x = {**_y(chart), "axis": {"format": AXES[chart.form], "title": chart.x_title, "tickCount": 4}}
    by = "series" if chart.points["series"].n_unique() > 1 else "run"
    encoding: dict[str, Any] = {"y": y, "x": x, **_colours(chart.points, by)}
    if by == "run" and chart.points["run"].n_unique() > 1:
        encoding["yOffset"] = {"field": "run"}
    return [{"mark": {"type": "bar"}, "encoding": {**encoding, "description": {"field": "label"}}}]


def _x(chart: Chart) -> dict[str, Any]:
    axis = {"title": chart.x_title, "format": "~s", "tickCount": 6, "tickMinStep": 1, "grid": False}
    axis |= {"labelFlush": False}
    low, high = chart.points["x"].min(), chart.points["x"].max()
    if isinstance(low, float) and isinstance(high, float) and high - low <= FEW_TICKS:
        axis["values"] = list(range(math.ceil(low), math.floor(high) + 1))  # no halves of a round
    return {"field": "x", "type": "quantitative", "axis": axis, "scale": {"zero": False}}


def _y(chart: Chart) -> dict[str, Any]:
    axis = {"title": None, "format": AXES[chart.form], "tickCount": 3 if chart.log else 5}
    scale = {"type": "log"} if chart.log else {"zero": chart.kind != "line"}
    return {"field": "value", "type": "quantitative", "axis": axis, "scale": scale}


def _colours(points: pl.DataFrame, by: str | None = None) -> dict[str, Any]:
    """Return the encoding of runs by colour; of series too, or by dashes where runs are several."""
    runs, series = (
        points[name].unique(maintain_order=True).to_list() for name in ("run", "series")
    )
    first = by or ("run" if len(runs) > 1 else "series")
    names = runs if first == "run" else series
    found = {"color": _channel(first, names, [f"var(--c{i % COLOURS})" for i in range(len(names))])}
    if by is None and len(runs) > 1 and len(series) > 1:
        places = [i % len(DASHES) for i in range(len(series))]
        found["strokeDash"] = _channel("series", series, [DASHES[i] for i in places])
        found["shape"] = _channel("series", series, [SHAPES[i] for i in places])
    return found


def _channel(name: str, domain: list[str], chosen: list[Any]) -> dict[str, Any]:
    legend = {"title": None, "orient": "bottom", "columns": 4} if len(domain) > 1 else None
    scale = {"domain": [plain(one) for one in domain], "range": chosen}
    return {"field": name, "type": "nominal", "sort": None, "scale": scale, "legend": legend}


def _value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return plain(value) if isinstance(value, str) else value


_INK = {"labelColor": "var(--soft)", "titleColor": "var(--soft)", "titleFontWeight": "normal"}

CONFIG: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "axis": {
        **_INK,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 11,
        "symbolSize": 60,
        "symbolOpacity": 1,
        "symbolBaseFillColor": "var(--soft)",
        "symbolBaseStrokeColor": "var(--soft)",
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
    },
    "view": {"stroke": None},
    "bar": {"discreteBandSize": {"band": 0.8}},
}
