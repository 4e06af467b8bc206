"""What a tracker is told of a run, and what it must be able to do. Loads no library."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.store.paths import located
from pipeline.store.place import ConfigPlace
from schemas.errors import ConfigError

Cell = str | float | None


@dataclass(frozen=True)
class Point:
    """Figures of one optimizer step or of one round."""

    axis: Literal["step", "round"]
    number: int
    """Of the step or the round: the key under which a tracker has it, however often it is sent."""
    order: int
    """Place among all points of the run: rises with every step and every part of a round."""
    figures: Mapping[str, float]

    @property
    def named(self) -> dict[str, float]:
        """Return the figures under the names that trackers show."""
        return {f"{self.axis}/{name}": value for name, value in self.figures.items()}


@dataclass(frozen=True)
class Part:
    """What is sent at once, or not at all: a round as it is trained, or its evaluation."""

    name: str
    points: tuple[Point, ...]
    samples: tuple[Mapping[str, Cell], ...] = ()
    """Rows of a table of responses."""

    @property
    def order(self) -> int:
        """Return the place of its last point."""
        return self.points[-1].order

    @property
    def round(self) -> int:
        """Return the round that it is of."""
        return next(point.number for point in self.points if point.axis == "round")


@dataclass(frozen=True)
class Subject:
    """The run that is told of."""

    name: str
    id: str
    """Made of name and fingerprint, so that a resumed run goes on where it was."""
    settings: Mapping[str, str]
    """Its configuration, fingerprints and versions, by dotted name; holds no secret."""


class Tracker(Protocol):
    """One run in one tracker. Any method may raise whatever its library raises."""

    def sent(self) -> frozenset[str]:
        """Return the names of the parts that it has."""

    def send(self, part: Part) -> None:
        """Take a part."""

    def attach(self, report: Path) -> None:
        """Take the newest report in the place of the one before."""

    def close(self) -> None:
        """Keep everything; nothing comes after."""


def local_path(place: ConfigPlace, text: str) -> Path:
    """Return a path of the configuration that is one of this machine.

    Raises:
        ConfigError: the configuration stands in a store, and the path is relative to it.
    """
    found = located(place.resolve(text))
    if not found.is_local:
        raise ConfigError(f"{found.url} is no path of this machine: [track] needs an absolute one")
    return Path(found.path)
