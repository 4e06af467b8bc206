"""`[track]`: programs that show runs, which are told of rounds and steps as they end."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.config.section import Name, Place, Seconds, Section, Text, tuning
from schemas.location import parse_location

SERVER = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")


def is_server(text: str) -> bool:
    """Return whether a text is the URL of a web server."""
    return text.lower().startswith(("http://", "https://"))


def _local(text: str) -> str:
    if not parse_location(text).is_local:
        raise ValueError("trackers write to disks of this machine: give a path")
    return text


def _served(text: str) -> str:
    if not is_server(text):
        return _local(text)
    if not SERVER.fullmatch(text):
        raise ValueError(
            "it is a URL with a user, a password or parameters, which is not repeated. Credentials "
            "come from the environment, as MLflow reads them: MLFLOW_TRACKING_USERNAME and others"
        )
    return text


Folder = Annotated[Place, AfterValidator(_local)]
"""A path of this machine."""

Served = Annotated[Text, AfterValidator(_served)]
"""A path of this machine, or the URL of a web server."""


class TensorBoardSection(Section):
    """`[track.tensorboard]`: event files."""

    folder: Folder = tuning(...)
    """Folder that `tensorboard --logdir` is given; the run has a folder of its own in it."""


class MLflowSection(Section):
    """`[track.mlflow]`: a run of MLflow; credentials come from the environment."""

    uri: Served = tuning(...)
    """A file for a SQLite database, such as `mlflow.db`, or the URL of a tracking server."""
    experiment: Text = tuning("opd")
    """Name of the experiment; it is made where there is none."""


class WandbSection(Section):
    """`[track.wandb]`: a run of Weights & Biases; the key comes from the environment."""

    project: Name = tuning("opd")
    """Name of the project."""
    entity: Name | None = tuning(None)
    """User or team; default that of the key."""
    mode: Literal["online", "offline"] = tuning("online")
    """Whether it is sent at once, or kept in `folder` for `wandb sync`."""
    folder: Folder = tuning("wandb")
    """Folder of this machine for what the library writes."""


class TrackioSection(Section):
    """`[track.trackio]`: a run of trackio, in a folder of this machine."""

    project: Name = tuning("opd")
    """Name of the project."""
    folder: Folder = tuning("trackio")
    """Folder that trackio is given as `TRACKIO_DIR`; best one of a local disk."""


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
    mlflow: MLflowSection | None = tuning(None)
    """MLflow."""
    wandb: WandbSection | None = tuning(None)
    """Weights & Biases."""
    trackio: TrackioSection | None = tuning(None)
    """trackio."""

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


TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
"""Tables of `[track]` that are trackers."""
