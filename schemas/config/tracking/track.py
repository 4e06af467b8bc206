"""`[track]`: programs that show runs, which are told of rounds and steps as they end."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from schemas.config.section import Place, Seconds, Section, tuning
from schemas.location import parse_location


def _local(text: str) -> str:
    if not parse_location(text).is_local:
        raise ValueError("trackers write to disks of this machine: give a path")
    return text


Folder = Annotated[Place, AfterValidator(_local)]
"""A path of this machine."""


class TensorBoardSection(Section):
    """`[track.tensorboard]`: event files."""

    folder: Folder = tuning(...)
    """Folder that `tensorboard --logdir` is given; the run has a folder of its own in it."""


class TrackSection(Section):
    """`[track]`: who is told of the run; one that fails or hangs stops nothing."""

    samples: Annotated[int, Field(ge=0, le=1000)] = tuning(8)
    """Responses of each round that are sent as a table; 0 sends none."""
    report: bool = tuning(True)
    """Whether the report is sent too, where `opd report` can be made."""
    wait_s: Seconds = tuning(60.0)
    """Seconds that a command waits at its end for what is not sent yet; the next command sends it
    otherwise."""
    python: Folder | None = tuning(None)
    """Python of another environment with `opd[trackers]`, such as `.venv-trackers/bin/python`, for
    where the libraries do not fit beside those of an engine. Default: the one that runs opd."""
    tensorboard: TensorBoardSection | None = tuning(None)
    """TensorBoard."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the trackers that are configured."""
        return tuple(name for name in TRACKERS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _some(self) -> "TrackSection":
        if not self.kinds:
            tables = ", ".join(f"[track.{name}]" for name in TRACKERS)
            raise ValueError(f"[track] names no tracker: add {tables}, or take it out")
        return self


TRACKERS = ("tensorboard",)
"""Tables of `[track]` that are trackers."""
