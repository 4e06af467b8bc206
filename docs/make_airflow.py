"""Write docs/airflow-graph.svg: the tasks of a round as Airflow has them, each after the others.

Usage: .venv-airflow/bin/python docs/make_airflow.py [--check]

The graph is that of the DAG `opd_rounds`, which a test of Airflow holds the picture against. With
--check nothing is written, and the exit status is 1 where the picture is out of date.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from generated import main

DAGS = Path(__file__).parent.parent / "airflow_dags"
TARGET = Path(__file__).with_name("airflow-graph.svg")

WORDS = {
    "plan": "what is due",
    "teachers": "who scores",
    "rollout": "× workers",
    "baseline": "round 0 alone",
    "score": "× teachers × workers",
    "grade": "with [reward]",
    "train": "next checkpoint",
    "eval": "grades it",
    "gate": "go on, stop or fail",
}
"""Task of a round → what it does; tasks of one column stand in this order."""

COLUMN, ROW, WIDTH, HEIGHT, LEFT, TOP = 190, 84, 152, 54, 24, 66

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
aria-labelledby="title about">
  <title id="title">A round in Airflow</title>
  <desc id="about">{about}</desc>
  <style>
    text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; \
text-anchor: middle }}
    .ground {{ fill: #ffffff; stroke: #d0d7de }}
    .group {{ fill: #f0f3f6; stroke: #8c959f }}
    .task {{ fill: #dbeafe; stroke: #1d4ed8 }}
    .name {{ font-size: 16px; font-weight: 600; fill: #1f2328 }}
    .what {{ font-size: 12.5px; fill: #57606a }}
    .arrow {{ stroke: #57606a; stroke-width: 1.6; fill: none }}
    .head {{ fill: #57606a }}
    @media (prefers-color-scheme: dark) {{
      .ground {{ fill: #0d1117; stroke: #3d444d }}
      .group {{ fill: #161b22; stroke: #656d76 }}
      .task {{ fill: #10284f; stroke: #6ea8fe }}
      .name {{ fill: #f0f6fc }}
      .what {{ fill: #aab2bd }}
      .arrow {{ stroke: #aab2bd }}
      .head {{ fill: #aab2bd }}
    }}
  </style>
  <defs>
    <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker>
  </defs>"""

Graph = Mapping[str, list[str]]
"""Task → the tasks right after it."""


def render(after: Graph) -> str:
    """Return the picture of round 0 of a DAG.

    Args:
        after: of all its tasks, by their ids.
    """
    inner = {one.removeprefix("round_0."): names for one, names in after.items() if _is_first(one)}
    graph = {name: [n.removeprefix("round_0.") for n in names] for name, names in inner.items()}
    return "\n".join([*_lines(graph), "</svg>", ""])


def _is_first(task: str) -> bool:
    return task.startswith("round_0.")


def _lines(graph: Graph) -> Iterator[str]:
    places = _places(graph)
    right = max(x for x, _ in places.values()) + WIDTH
    bottom = max(y for _, y in places.values()) + HEIGHT
    about = "; ".join(f"after {name}: {', '.join(names)}" for name, names in graph.items())
    width, height = right + LEFT + 30, bottom + 2 * LEFT
    yield HEAD.format(width=width, height=height, about=about)
    yield f'  <rect class="ground" width="{width}" height="{height}" rx="8"/>'
    yield (
        f'  <rect class="group" x="{LEFT // 2}" y="{LEFT // 2}" width="{right + LEFT // 2}" '
        f'height="{bottom + LEFT // 2 + 4}" rx="8"/>'
    )
    yield f'  <text class="name" x="{LEFT + 40}" y="40">round_0</text>'
    for name, names in graph.items():
        for other in names:
            yield _arrow(places[name], places.get(other, (width, places[name][1])))
    for name, (x, y) in places.items():
        middle = x + WIDTH // 2
        yield f'  <rect class="task" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        yield f'  <text class="name" x="{middle}" y="{y + 23}">{name}</text>'
        yield f'  <text class="what" x="{middle}" y="{y + 42}">{WORDS[name]}</text>'


def _arrow(begin: tuple[int, int], end: tuple[int, int]) -> str:
    x, y, right, low = begin[0] + WIDTH, begin[1] + HEIGHT // 2, end[0], end[1] + HEIGHT // 2
    bend = min(COLUMN // 3, (right - x) // 2)
    curve = f"M{x} {y}C{x + bend} {y} {right - bend} {low} {right - 2} {low}"
    return f'  <path class="arrow" marker-end="url(#tip)" d="{curve}"/>'


def _places(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return the corner of each task: its column by the longest way to it, its row by the first."""
    before = {name: [one for one, names in graph.items() if name in names] for name in graph}

    @cache
    def column(name: str) -> int:
        return max((column(one) + 1 for one in before[name]), default=0)

    rows = dict[str, float]()
    for number in range(max(map(column, graph)) + 1):
        here = [name for name in WORDS if name in graph and column(name) == number]
        wanted = {name: _row(name, before, rows, column) for name in here}
        middle = sum(wanted.values()) / len(wanted)
        for place, name in enumerate(here):
            spread = middle + place - (len(here) - 1) / 2
            rows[name] = wanted[name] if len(here) == 1 else spread
    least = min(rows.values())
    return {
        name: (LEFT + COLUMN * column(name), TOP + round(ROW * (rows[name] - least)))
        for name in graph
    }


def _row(
    name: str, before: Graph, rows: Mapping[str, float], column: Callable[[str], int]
) -> float:
    """Return the row between those of the tasks that are first of what a task waits for."""
    first = min((column(one) for one in before[name]), default=0)
    found = [rows[one] for one in before[name] if column(one) == first]
    return sum(found) / len(found) if found else 0.0


def loaded() -> dict[str, list[str]]:
    """Return the graph as Airflow loads it."""
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(DAGS / "opd_rounds.py").dags["opd_rounds"]
    return {one.task_id: sorted(one.downstream_task_ids) for one in dag.tasks}


if __name__ == "__main__":
    main(TARGET, lambda: render(loaded()), __doc__)
