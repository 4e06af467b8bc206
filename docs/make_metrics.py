"""Write docs/metrics.md: every figure of a run, its unit and its meaning.

Usage: python docs/make_metrics.py [--check]

Figures come from the catalogue of `opd report`. With --check nothing is written, and the exit
status is 1 where the file is out of date.
"""

from collections.abc import Iterator
from pathlib import Path

from generated import main

from pipeline.report.catalogue import GROUPS, Group

TARGET = Path(__file__).with_name("metrics.md")

INTRODUCTION = """\
# Metrics

<!-- Written by docs/make_metrics.py from pipeline/report/catalogue.py. -->

The figures of a run, by the names that records and the report use. `opd report` draws them, and
`opd status --json` has the newest of many. What the learner takes of each step stands in
[objectives.md](objectives.md#diagnostics); it lies in Parquet files below `runs/<run>/metrics/`,
and the means of a round in its train manifest.

*nats* are units of natural logarithms, a *share* is between 0 and 1.
"""

UNITS = {
    "share": "share",
    "nats": "nats",
    "number": "",
    "count": "count",
    "seconds": "seconds",
    "bytes": "bytes",
    "tiny": "",
}
"""Form of a figure → its unit."""


def render() -> str:
    """Return the whole text of the page."""
    return "\n".join([INTRODUCTION, *(line for group in GROUPS for line in _section(group))])


def _section(group: Group) -> Iterator[str]:
    """Yield the lines about a group of figures."""
    yield from (f"## {group.title}", "", f"By {group.by}. {group.words}", "")
    yield from ("| names | unit | title | meaning |", "|-|-|-|-|")
    for figure in group.figures:
        if figure.kind == "cost":  # the same figures, along another axis
            continue
        names = ", ".join(f"`{name}`" for name in figure.names)
        unit = "nats" if "kl" in figure.names[0].split("_") else UNITS[figure.form]
        yield f"| {names} | {unit} | {figure.title} | {figure.meaning} |"
    yield ""


if __name__ == "__main__":
    main(TARGET, render, __doc__)
