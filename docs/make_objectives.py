"""Write the table of docs/objectives.md: what every objective learns of the quickstart's task.

Usage: python docs/make_objectives.py [--check]

The figures are those of benchmarks/results/objectives.json. With --check nothing is written, and
the exit status is 1 where the page is out of date.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from generated import main

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "objectives.json"
TARGET = Path(__file__).with_name("objectives.md")
BEGIN = "<!-- Written by docs/make_objectives.py from benchmarks/results/objectives.json. -->\n"
END = "<!-- The table of objectives ends here. -->\n"

ROUNDS = (3, 8, 13)
"""Rounds whose accuracy is shown."""


def render() -> str:
    """Return the whole page with the table as it should be."""
    before, rest = TARGET.read_text(encoding="utf-8").split(BEGIN)
    table = "\n".join(_table(json.loads(RESULT.read_text(encoding="utf-8"))["objectives"]))
    return before + BEGIN + "\n" + table + "\n\n" + END + rest.split(END)[1]


def _table(objectives: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table."""
    rounds = [f"round {index}" for index in ROUNDS]
    titles = ("objective", "seeds", *rounds, "worst seed, of the teacher", "reverse KL")
    yield f"| {' | '.join(titles)} |"
    yield "|" + "-|" * len(titles)
    for one in objectives:
        accuracy = [_percent(one["accuracy_by_round"][index]) for index in ROUNDS]
        worst = f"{100 * min(one['of_teacher']):.1f} %"
        divergence = _with_interval(one["reverse_kl_by_round"][ROUNDS[-1]], "{:.4f}")
        cells = (one["name"], str(len(one["of_teacher"])), *accuracy, worst, divergence)
        yield f"| {' | '.join(cells)} |"


def _percent(figure: Mapping[str, Any]) -> str:
    half = figure["plus_minus"]
    scaled = {"mean": 100 * figure["mean"], "plus_minus": None if half is None else 100 * half}
    return _with_interval(scaled, "{:.1f}") + " %"


def _with_interval(figure: Mapping[str, Any], form: str) -> str:
    """Return a mean over seeds, with half of its 95 % interval where there are several."""
    mean, half = form.format(figure["mean"]), figure["plus_minus"]
    return mean if half is None else f"{mean} ± {form.format(half)}"


if __name__ == "__main__":
    main(TARGET, render, __doc__)
