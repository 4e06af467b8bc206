"""The note beside W&B's files: which parts were sent, and at which steps of W&B.

Promises: steps rise from point to point, whatever comes late; of a part that a killed process had
begun it is known which points are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.store.disk import files
from schemas.errors import DataError

Rows = tuple[tuple[int, int, int], ...]
"""Points in a row: order of the first, its step of W&B, and how many."""


@dataclass(frozen=True)
class Note:
    """What is known of a run in W&B."""

    sent: frozenset[str] = frozenset()
    """Parts that are there whole."""
    begun: Mapping[str, Rows] = field(default_factory=dict)
    """Parts that are there or on their way, and the steps that their points take."""
    points: Mapping[str, int] = field(default_factory=dict)
    """How many points these parts have."""
    end: int = 0
    """The step after all that was seen to be there."""
    before: int | None = None
    """Points whose order is below are there, as others noted nothing of them; None: not known."""
    folders: frozenset[str] = frozenset()
    """Names of W&B's folders that were finished, or read."""
    next: int = 0
    """The step that comes next, while a process sends."""

    def gone_on(self, seen: int, folders: Sequence[str]) -> "Note":
        """Return the note of a process that goes on where W&B has all steps below one.

        Args:
            seen: that step, by what was looked at now.
            folders: names of the folders that were looked at.
        """
        reached = max(self.end, seen)
        kept = {name: _below(rows, reached) for name, rows in self.begun.items()}
        whole = {name for name, rows in kept.items() if _count(rows) == self.points.get(name)}
        return replace(
            self,
            sent=self.sent | whole,
            begun={name: rows for name, rows in kept.items() if name not in whole},
            points={name: count for name, count in self.points.items() if name not in whole},
            end=reached,
            before=reached if self.before is None else self.before,
            folders=self.folders.union(folders),
            next=reached,
        )

    def with_part(self, name: str, orders: Sequence[int]) -> tuple["Note", dict[int, int]]:
        """Return the note with a part in it, and the steps of those points that are not there."""
        had = self.begun.get(name, ())
        there = {first + n for first, _, count in had for n in range(count)}
        old = [one for one in orders if one < (self.before or 0) and one not in there]
        places, step = dict[int, int](), self.next
        for order in orders:
            if order not in there and order not in old:
                places[order] = step = max(order, step)
                step += 1
        rows = (*had, *_rows({one: one for one in old}), *_rows(places))
        begun = {**self.begun, name: rows}
        return replace(
            self, begun=begun, points={**self.points, name: len(orders)}, next=step
        ), places

    def finished(self, told: frozenset[str], folder: str) -> "Note":
        """Return the note after a process that has told some parts finished its folder."""
        return replace(
            self,
            sent=self.sent | told,
            begun={name: rows for name, rows in self.begun.items() if name not in told},
            points={name: count for name, count in self.points.items() if name not in told},
            end=self.next,
            before=0,
            folders=self.folders | {folder},
        )


NOTES = TypeAdapter(Note)


def read_note(path: Path) -> Note:
    """Return a note as it was written; an empty one where there is none.

    Raises:
        DataError: the file is none.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Note()
    try:
        if text.startswith(b"["):  # as it was once: the parts that were sent
            return Note(sent=TypeAdapter(frozenset[str]).validate_json(text))
        return NOTES.validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"{path} is no note of what W&B was told: delete it, and all is told again"
        ) from error


def write_note(path: Path, note: Note) -> None:
    """Write a note in the place of the one before."""
    files.replace(path, NOTES.dump_json(note, exclude={"next"}))


def _rows(places: Mapping[int, int]) -> Rows:
    found = list[tuple[int, int, int]]()
    for order, step in places.items():
        if found and (order, step) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
        else:
            found.append((order, step, 1))
    return tuple(found)


def _count(rows: Rows) -> int:
    return sum(count for _, _, count in rows)


def _below(rows: Rows, reached: int) -> Rows:
    cut = ((order, step, min(count, reached - step)) for order, step, count in rows)
    return tuple(row for row in cut if row[2] > 0)
