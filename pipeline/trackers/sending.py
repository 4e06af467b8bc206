"""Sending to one tracker what it does not have yet, from stored records.

Promises: what fails is told once, in words, and nothing else happens.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from pipeline.runs.run import Run
from pipeline.store.disk.scratch import scratch
from pipeline.trackers.parts import missing_parts, subject_of
from pipeline.trackers.tracker import Subject, Tracker
from schemas.errors import ConfigError
from schemas.foreign import excerpt, without_secrets

Report = Callable[[Run, Path], None]
"""Writes a run's report to a file, where one can be made."""


class Sender:
    """A run and one tracker."""

    def __init__(self, run: Run, kind: str, tell: Callable[[str], None]) -> None:
        """Take what is told of failures; nothing is opened yet."""
        self._run, self._kind, self._tell = run, kind, tell
        self._tracker: Tracker | None = None
        self._told = set[str]()
        self.count = 0
        """Parts sent."""
        self.failed = False

    def catch_up(self) -> None:
        """Send the finished parts that the tracker lacks."""
        self._trying("it was not told of a part", self._send)

    def finish(self, report: Report | None) -> None:
        """Send the report, if one can be made, and close the tracker."""
        if report is not None and self._tracker is not None and self.count:
            self._trying("it has no report", lambda: self._attach(report))
        if self._tracker is not None:
            self._trying("its end is missing", self._tracker.close)

    def _send(self) -> None:
        if self._tracker is None:
            subject = subject_of(self._run)
            if subject is None:
                return
            self._tracker = open_tracker(self._run, self._kind, subject)
        for part in missing_parts(self._run, self._tracker.sent()):
            self._tracker.send(part)
            self.count += 1

    def _attach(self, report: Report) -> None:
        assert self._tracker is not None
        with scratch("track") as folder:
            page = folder / "report.html"
            report(self._run, page)
            if page.exists():
                self._tracker.attach(page)

    def _trying(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # libraries raise what they like, and a run goes on without them
            self.failed = True
            reason = excerpt(without_secrets(str(error).strip() or type(error).__name__), 300)
            words = f"tracker {self._kind}: {what}: {reason}"
            if words not in self._told:
                self._told.add(words)
                self._tell(f"{words}. Nothing else is changed; `opd track` sends it again")


def open_tracker(run: Run, kind: str, subject: Subject) -> Tracker:
    """Return a tracker that goes on with the run; its library is imported here.

    Raises:
        ConfigError: the library is not installed.
    """
    section = run.config.track
    assert section is not None
    try:
        module = importlib.import_module(f"pipeline.trackers.{kind}")
    except ImportError as error:
        raise ConfigError(
            f"its library cannot be imported ({error}): pip install 'opd[trackers]', here or in an "
            "environment whose Python track.python names"
        ) from error
    opened: Tracker = module.opened(run.place, section, subject)
    return opened
