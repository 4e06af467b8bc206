"""Weights & Biases: one run, online or in a folder that `wandb sync` sends later.

A file beside what the library writes says which parts are in what was finished; a server, too,
takes no step twice.
"""

import json
from pathlib import Path
from typing import Any

import wandb

from pipeline.store.disk.files import replace
from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Part, Subject, Tracker, local_path
from schemas.config.tracking.track import TrackSection, WandbSection


def opened(place: ConfigPlace, section: TrackSection, subject: Subject) -> Tracker:
    """Return the tracker as it is configured."""
    assert section.wandb is not None
    return WeightsAndBiases(local_path(place, section.wandb.folder), section.wandb, subject)


class WeightsAndBiases:
    """One run in W&B."""

    def __init__(self, folder: Path, section: WandbSection, subject: Subject) -> None:
        """Begin the run, or go on with it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._id, self._file = subject.id, folder / f"{subject.id}.{section.mode}.json"
        known = json.loads(self._file.read_text()) if self._file.exists() else []
        self._sent = set[str](known)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run: Any = wandb.init(
            project=section.project,
            entity=section.entity,
            id=subject.id,
            name=subject.name,
            dir=str(folder),
            mode=section.mode,
            resume="allow",
            config=dict(subject.settings),
            settings=settings,
        )
        for axis in ("step", "round"):
            self._run.define_metric(f"{axis}/*", step_metric=axis)

    def sent(self) -> frozenset[str]:
        """Return the parts that were sent."""
        return frozenset(self._sent)

    def send(self, part: Part) -> None:
        """Send a part; steps that a resumed run has are left out."""
        for one in part.points:
            if one.order >= self._run.step:
                values: dict[str, Any] = {one.axis: one.number, **one.named}
                if part.samples and one is part.points[-1]:
                    rows = [list(row.values()) for row in part.samples]
                    values["samples"] = wandb.Table(columns=list(part.samples[0]), data=rows)
                self._run.log(values, step=one.order)
        self._sent.add(part.name)

    def attach(self, report: Path) -> None:
        """Send the report as the newest version of an artifact."""
        artifact = wandb.Artifact(f"report-{self._id}", type="report")
        artifact.add_file(str(report))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish, and only then note what was sent."""
        self._run.finish()
        replace(self._file, json.dumps(sorted(self._sent)).encode())
