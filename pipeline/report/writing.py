"""A report as a file: gathered, drawn, and there whole or not at all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.report.drawing.charts import require_library
from pipeline.report.figures import RunFigures, gather
from pipeline.report.page import View, page
from pipeline.report.transcripts.packing import MOST_BYTES, pack
from pipeline.report.transcripts.pieces import student_pieces
from pipeline.runs.run import Run
from pipeline.store.disk.files import replace
from schemas.errors import ConfigError

BEGINNING = b"<!doctype html>"
"""What pages begin with."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: str
    bytes: int
    rounds: int
    """Of all runs, that have begun."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the command's JSON object."""
        return asdict(self)


def write_report(
    runs: Sequence[Run], path: Path, *, rows: int, column: str | None, written_at: str
) -> Report:
    """Write the report of some runs in place of what was there.

    Args:
        runs: the runs.
        path: the file.
        rows: sequences of a round that are looked at, and transcripts of the page, at most.
        column: free column of the prompt file that divides prompts into families.
        written_at: the time, as the page tells it.

    Raises:
        ConfigError: charts cannot be drawn here, a run has not begun, or the path is a folder.
        DataError: a stored record is damaged.
    """
    require_library()
    _check_free(path)
    figures = []
    for run, name in zip(runs, _names(runs), strict=True):
        figures.append(gather(run, name, rows=rows, column=column))
        _check_begun(figures[-1])
    views = [_view(one, rows, len(runs)) for one in figures]
    data = page(views, written_at=written_at).encode()
    replace(path, data)
    return Report(str(path), len(data), sum(len(one.rounds) for one in figures))


def _view(figures: RunFigures, rows: int, runs: int) -> View:
    pieces, untold = student_pieces(figures.records.run)
    most, size = max(rows // runs, 1), MOST_BYTES // runs
    packed = pack(figures.sample, pieces, most_rows=most, most_bytes=size)
    return View(figures, pieces, untold, packed)


def _check_begun(figures: RunFigures) -> None:
    run = figures.records.run
    if not figures.records.rounds:
        raise ConfigError(
            f"run {run.name} at {run.storage.root} has not begun: there is nothing to report. "
            "Start it with `opd run`, or correct run.name and run.root"
        )


def _check_free(path: Path) -> None:
    """Refuse to replace what is no page of ours."""
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: name the file, such as {path}/report.html")
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        raise ConfigError(f"--out {path} cannot be: {above} is no folder. Name another file")
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(f"--out {path} is no file that can be replaced: name another one")
    with path.open("rb") as file:
        if file.read(len(BEGINNING)) not in (b"", BEGINNING):
            raise ConfigError(
                f"--out {path} is there and is no HTML page: a report replaces nothing else. Name "
                "another file, or delete it"
            )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return what the page calls each run: its name, and its number where names repeat."""
    counts = Counter(run.name for run in runs)
    return [
        run.name if counts[run.name] == 1 else f"{run.name} ({number})"
        for number, run in enumerate(runs, 1)
    ]
