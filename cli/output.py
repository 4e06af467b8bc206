"""Results on stdout: lines and tables for people, one JSON object for machines."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from cli.progress import BarProgress, EventProgress, QuietProgress
from cli.terminal import cell, console, say, say_json, say_table, warn
from pipeline.runs.figures import (
    EvalFigures,
    RewardFigures,
    SampleFigures,
    ScoreFigures,
    TrainFigures,
)
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult
from pipeline.runs.status import RoundStatus, RunStatus

UNITS = ("B", "kB", "MB", "GB", "TB")

JSON_FILE = "OPD_JSON_FILE"
"""Variable that names a file for the JSON object, such as the one that Kubernetes hands on."""

COLUMNS = (
    *("round", "rollout", "samples", "grade", "score", "train", "eval", "reward"),
    *("accuracy", "reverse KL", "teacher tokens", "reused rows", "seconds"),
)
OF_REWARDS = frozenset({"grade", "reward"})
"""Columns that are left out where there are no rewards."""

MARKS = {"done": ("done", ""), "partial": ("partial", "yellow"), "missing": ("–", "dim")}
"""State of a stage → what stands for it, and how."""

STATUS_WIDTH = 110
"""Columns of the table of a run where no terminal says how many it has."""


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
        found = figures.found
        return [f"{figures.subject} accuracy {found.accuracy:.1%} ± {found.standard_error:.1%}"]
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
        notes.append(f"teacher read {result.teacher_tokens:,}, reused {result.reused_rows:,} rows")
    if figures.sibling_rows:
        notes.append(f"{sum(figures.sibling_rows.values()):,} of them of sibling scorers")
    if figures.reverse_kl is not None:
        notes.append(f"reverse KL {figures.reverse_kl:.4f} nats")
    return notes


def print_status(status: RunStatus, *, only: int | None = None) -> None:
    """Print where a run stands as a table.

    Args:
        status: the run, or one round of it.
        only: the round that was asked for; None for all.
    """
    say(f"run {status.run} at {status.root}")
    rows: list[dict[str, str | Text]] = []
    if status.initial_accuracy is not None:
        rows.append({"round": "start", "accuracy": f"{status.initial_accuracy:.1%}"})
    rows += [_cells(row) for row in status.rounds]
    off = {
        name for name in ("samples", "grade") if all(_is_off(row, name) for row in status.rounds)
    }
    off |= OF_REWARDS if "grade" in off else set()
    titles = [title for title in COLUMNS if title not in off]
    cells = [[row.get(title, "") for title in titles] for row in rows]
    say_table(titles, cells, left=(), width=STATUS_WIDTH, wrap_titles=True)
    for one in status.rounds:
        if told := without_reward(one.without_reward):
            say(f"round {one.round}: {told}")
    if status.teacher_accuracy is not None:
        say(f"teacher accuracy {status.teacher_accuracy:.1%}")
    for line in [line for one in status.rounds for line in _at_work(one)]:
        say(line)
    left = status.rounds_planned - len(status.rounds)
    if only is None and left:
        say(f"{left} of {status.rounds_planned} rounds not begun")
    if status.next_failure is not None:
        say(f"round {status.next_round} could not begin: {status.next_failure}")
    if only is not None and not status.rounds:
        say(f"round {only} has not begun")
    if status.changed:
        warn(
            "opd: the configuration is not that of this run, and its stages would refuse it:",
            *(f"  {change}" for change in status.changed),
        )


def print_next(status: RunStatus, config: str) -> None:
    """Print what comes next, the command for it, and how long all that is left takes."""
    if status.next_round is None:
        say(f"all {status.rounds_planned} rounds are done")
        return
    todo = f"{status.next_stage} of round {status.next_round}"
    stage = f"opd {status.next_stage} -c {config} --round {status.next_round}"
    say(f"next: {todo}: `{stage}`, or `opd run -c {config}` for all that is left")
    if rates := _rates(status.rounds):
        say(rates)
    if status.seconds_left is not None:
        say(f"left: {_in_hours(status.seconds_left)} of work at the rates of the last scored round")


def _rates(rounds: Sequence[RoundStatus]) -> str:
    """Return the tokens a second of each stage in the last round that was trained."""
    for row in reversed(rounds):
        if row.stages["train"].state != "done":
            continue
        timed = {name: one for name, one in row.stages.items() if one.seconds and one.tokens}
        rates = [f"{name} {one.tokens / one.seconds:,.0f}" for name, one in timed.items()]
        return f"tokens a second in round {row.round}: {', '.join(rates)}" if rates else ""
    return ""


def _in_hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


def _at_work(row: RoundStatus) -> list[str]:
    """Return a line for each worker of a round, and for each stage that failed and stands still."""
    lines = []
    for name, stage in row.stages.items():
        where = f"round {row.round} {name}:"
        for holder in stage.workers:
            who = f"process {holder.process} on {holder.host}"
            age = f"renewed {holder.age_s:,.0f} s ago"
            state = f"{age}; gone, its unit is free" if holder.gone else age
            lines.append(f"{where} {who} holds {holder.unit}, {state}")
        if stage.failure is not None and not stage.is_running:
            lines.append(f"{where} failed: {stage.failure}")
    return lines


def _is_off(row: RoundStatus, stage: str) -> bool:
    return row.stages[stage].state == "off"


def _cells(row: RoundStatus) -> dict[str, str | Text]:
    """Return what stands under the titles of a round's row."""
    seconds = sum(stage.seconds for stage in row.stages.values())
    return {
        "round": str(row.round),
        **{name: _stage_cell(row, name) for name in row.stages},
        "reward": "" if row.reward is None else f"{row.reward:.4f}",
        "accuracy": "" if row.accuracy is None else f"{row.accuracy:.1%}",
        "reverse KL": "" if row.reverse_kl is None else f"{row.reverse_kl:.4f}",
        "teacher tokens": f"{row.teacher_tokens:,}",
        "reused rows": f"{row.reused_rows:,}",
        "seconds": f"{seconds:,.0f}",
    }


def _stage_cell(row: RoundStatus, name: str) -> Text:
    stage = row.stages[name]
    counted = stage.state == "partial" and stage.units
    done = f"{stage.units_done}/{stage.units}" if counted else ""
    if stage.is_running:
        return cell(f"{done} running".strip(), "green")
    if stage.failure is not None:
        return cell(f"{done} failed".strip(), "red")
    return cell(done, "yellow") if done else cell(*MARKS.get(stage.state, (stage.state, "dim")))


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
