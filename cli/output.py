"""Results on stdout: lines and tables for people, one JSON object for machines."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.progress import BarProgress, EventProgress, QuietProgress
from cli.terminal import console, say, say_json, say_table
from pipeline.runs.figures import (
    EvalFigures,
    RewardFigures,
    SampleFigures,
    ScoreFigures,
    TrainFigures,
)
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult

UNITS = ("B", "kB", "MB", "GB", "TB")

JSON_FILE = "OPD_JSON_FILE"
"""Variable that names a file for the JSON object, such as the one that Kubernetes hands on."""


def is_main_process() -> bool:
    """Return whether this process talks: only the first of a learner's processes does."""
    return os.environ.get("RANK", "0") == "0"


def make_progress(*, as_json: bool) -> Progress:
    """Return the progress display that fits the caller."""
    if not is_main_process():
        return QuietProgress()
    stderr = console(error=True)
    if as_json or not stderr.is_terminal:
        return EventProgress()
    return BarProgress(stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object as a line of stdout, and to the file that a scheduler names."""
    line = say_json(value)
    if path := os.environ.get(JSON_FILE):
        Path(path).write_text(line, encoding="utf-8")


def result_json(result: StageResult, seconds: float) -> dict[str, Any]:
    """Return the JSON object of a stage's result."""
    fields = asdict(result)
    fields.pop("figures")
    further = {} if result.figures is None else result.figures.fields()
    return {**fields, "seconds": round(seconds, 3), **further}


def joined_json(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one object for a stage: its only part, or the sums over its parts."""
    if len(lines) == 1:
        return lines[0]
    summed = ("units", "rows", "tokens", "reused_rows", "teacher_tokens", "seconds")
    manifests = [line["manifest"] for line in lines]
    return {
        **{key: lines[0][key] for key in ("stage", "run", "round")},
        **{key: sum(line[key] for line in lines) for key in summed},
        "manifest": manifests[-1] if all(manifests) else None,
        "parts": lines,
    }


def faults_in(lines: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many rows of the rounds that a run graded have no reward, by kind of fault."""
    found = Counter[str]()
    for line in lines:
        found.update(line.get("faults", {}))
    return dict(found)


def whole_json(run: str, lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return one object for all stages that a run did; with zeros where none was left."""
    summed = ("units", "tokens", "reused_rows", "teacher_tokens")
    last = lines[-1] if lines else {"round": None, "rows": 0, "manifest": None}
    return {
        "stage": "run",
        "run": run,
        "round": last["round"],
        **{key: sum(line[key] for line in lines) for key in summed},
        "rows": last["rows"],
        **({"faults": faults} if (faults := faults_in(lines)) else {}),
        "seconds": round(seconds, 3),
        "manifest": last["manifest"],
    }


def print_result(result: StageResult, seconds: float) -> None:
    """Print a stage's result as one line for people."""
    where = "baseline" if result.round is None else f"round {result.round}"
    if result.manifest is None:
        state = f"{result.units} units done here; others are still missing"
    elif result.units == 0 and result.reused_rows == 0:
        state = "already done"
    else:
        state = f"{result.rows:,} rows, {result.tokens:,} tokens"
    notes = [state, *_notes(result)]
    say(f"{where:>9}  {result.stage:<8} {', '.join(notes)}  ({seconds:.1f} s)")


def _notes(result: StageResult) -> list[str]:
    figures = result.figures
    if isinstance(figures, ScoreFigures):
        return _score_notes(result, figures)
    if isinstance(figures, EvalFigures) and figures.found is not None:
        return [f"{figures.subject} {figures.found.words}"]
    if isinstance(figures, SampleFigures):
        return [f"by teacher {figures.teacher}"]
    if isinstance(figures, RewardFigures):
        mean = "" if figures.reward is None else f"reward {figures.reward:.4f}"
        whose = f"of teacher {figures.teacher}" if figures.teacher else ""
        return [part for part in (whose, mean, without_reward(figures.faults)) if part]
    if isinstance(figures, TrainFigures) and figures.loss is not None:
        return [f"{figures.steps} steps, loss {figures.loss:.4f}"]
    return []


def without_reward(faults: Mapping[str, int]) -> str:
    """Return how many rows have no reward, by kind of fault; nothing where all have one."""
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in faults.items())
    return f"{sum(faults.values()):,} rows without reward ({kinds})" if kinds else ""


def _score_notes(result: StageResult, figures: ScoreFigures) -> list[str]:
    notes = []
    if result.teacher_tokens or result.reused_rows:
        read = f"teacher {figures.teacher} read {result.teacher_tokens:,}"
        notes.append(f"{read}, reused {result.reused_rows:,} rows")
    else:
        notes.append(f"by teacher {figures.teacher}")
    if figures.sibling_rows:
        notes.append(f"{sum(figures.sibling_rows.values()):,} of them of sibling scorers")
    if figures.reverse_kl is not None:
        notes.append(f"reverse KL {figures.reverse_kl:.4f} nats")
    return notes


def print_table(
    title: str, titles: Sequence[str], cells: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> None:
    """Print rows of text under titles, some columns on the left."""
    if title:  # not the table's own title, which is wrapped where the columns end
        say(title)
    say_table(titles, cells, left=left)


def in_bytes(count: float) -> str:
    """Return a number of bytes with a fitting unit."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {UNITS[-1]}"


def in_hours(seconds: float) -> str:
    """Return a time in hours, or in minutes where it is short."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"
