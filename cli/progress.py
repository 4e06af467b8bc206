"""What people and machines see while a stage works: a bar on a terminal, else JSON events."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cli.terminal import cell, warn_json

EVENT_S = 1.0
"""Seconds between two progress events."""


class BarProgress:
    """A bar on stderr with units, tokens per second and time left."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._tokens, self._begin = 0, 0.0

    def start(self, stage: str, total: int, done: int) -> None:
        """Begin a stage of `total` units of which `done` are done."""
        if done == total:
            return
        self._tokens, self._begin = 0, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description:>14}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(cell(stage).plain, total=total, completed=done, speed="")
        self._bar.start()

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count finished units and tokens."""
        if self._bar is not None:
            self._tokens += tokens
            rate = self._tokens / max(time.monotonic() - self._begin, 1e-6)
            speed = f"{rate:,.0f} tokens/s" if self._tokens else ""
            self._bar.update(self._task, advance=units, speed=speed)

    def note(self, text: str) -> None:
        """Show a line of text."""
        self._console.print(cell(f"note: {text}", "yellow"))

    def stop(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class EventProgress:
    """One JSON line per event on stderr, progress at most once a second."""

    def __init__(self) -> None:
        """Begin with no stage."""
        self._stage, self._total, self._done = "", 0, 0
        self._tokens, self._told = 0, 0.0

    def start(self, stage: str, total: int, done: int) -> None:
        """Begin a stage of `total` units of which `done` are done."""
        self._stage, self._total, self._done = stage, total, done
        self._tokens, self._told = 0, 0.0
        self._emit("start")

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count finished units and tokens."""
        self._done += units
        self._tokens += tokens
        if time.monotonic() - self._told >= EVENT_S:
            self._told = time.monotonic()
            self._emit("progress", tokens=self._tokens)

    def note(self, text: str) -> None:
        """Report a line of text."""
        self._emit("note", text=text)

    def stop(self) -> None:
        """End the stage."""
        self._emit("stop", tokens=self._tokens)

    def _emit(self, event: str, **facts: Any) -> None:
        line = {
            "event": event,
            "time": round(time.time(), 3),
            "stage": self._stage,
            "done": self._done,
            "units": self._total,
            **facts,
        }
        warn_json(line)


class QuietProgress:
    """Shows nothing: for the processes of a learner that do not talk to people."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Ignore the start of a stage."""

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Ignore finished units."""

    def note(self, text: str) -> None:
        """Ignore a line of text."""

    def stop(self) -> None:
        """Ignore the end of a stage."""
