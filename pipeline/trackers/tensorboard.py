"""TensorBoard: one event file for each part, there whole or not at all.

A file's name tells its part, so that the folder itself says what was sent.
"""

import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from pipeline.store.disk.files import replace
from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Part, Subject, Tracker, local_path
from schemas.config.tracking.track import TrackSection

PREFIX, OWNER = "events.out.tfevents.", ".opd."
"""How names of event files begin, and what stands in ours before the part."""


def opened(place: ConfigPlace, section: TrackSection, subject: Subject) -> Tracker:
    """Return the tracker as it is configured."""
    assert section.tensorboard is not None
    return TensorBoard(subject, local_path(place, section.tensorboard.folder))


class TensorBoard:
    """The event files of one run."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        """Take the run's folder, below the one that TensorBoard is given."""
        self._folder = folder / subject.id
        self._folder.mkdir(parents=True, exist_ok=True)
        table = _table(("key", "value"), sorted(subject.settings.items()))
        self._write("settings", 0, [Event(step=0, summary=_text("settings", table))])

    def sent(self) -> frozenset[str]:
        """Return the parts that have a file."""
        names = [path.name for path in self._folder.glob(f"{PREFIX}*{OWNER}*")]
        return frozenset(name.partition(OWNER)[2] for name in names)

    def send(self, part: Part) -> None:
        """Write the file of a part."""
        events = [Event(step=one.number, summary=_scalars(one.named)) for one in part.points]
        if part.samples:
            rows = [[str(v) for v in row.values()] for row in part.samples]
            table = _table(tuple(part.samples[0]), rows)
            events.append(Event(step=part.round, summary=_text("samples", table)))
        self._write(part.name, part.order, events)

    def attach(self, report: Path) -> None:
        """Put the report beside the event files."""
        replace(self._folder / "report.html", report.read_bytes())

    def close(self) -> None:
        """Do nothing: files are whole as they are."""

    def _write(self, name: str, order: int, events: Iterable[Any]) -> None:
        now, data = time.time(), io.BytesIO()
        writer = RecordWriter(data)
        for event in (Event(file_version="brain.Event:2"), *events):
            event.wall_time = now
            writer.write(event.SerializeToString())
        replace(self._folder / f"{PREFIX}{order:010d}{OWNER}{name}", data.getvalue())


def _scalars(figures: dict[str, float]) -> Any:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    return Summary(value=values)


def _text(name: str, text: str) -> Any:
    metadata = create_summary_metadata(display_name=name, description="")
    tensor = make_tensor_proto(text.encode(), shape=())
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown whose cells are text alone."""
    lines = [titles, ["---" for _ in titles], *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return escaped.replace("`", "&#96;").replace("\n", "<br>")
