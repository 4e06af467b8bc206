"""Weights & Biases: one run, online or in a folder that `wandb sync` sends later.

A file beside what the library writes notes the steps of a part before it is sent. What W&B
has after a kill is a beginning of these: the rest is sent again, and nothing twice.
"""

import fcntl
from pathlib import Path
from typing import Any

import wandb

from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Part, Subject, Tracker, local_path
from pipeline.trackers.wandblog import settled
from pipeline.trackers.wandbnote import read_note, write_note
from schemas.config.tracking.track import TrackSection, WandbSection
from schemas.errors import StorageError


def opened(place: ConfigPlace, section: TrackSection, subject: Subject) -> Tracker:
    """Return the tracker as it is configured."""
    assert section.wandb is not None
    return WeightsAndBiases(local_path(place, section.wandb.folder), section.wandb, subject)


class WeightsAndBiases:
    """One run in W&B."""

    def __init__(self, folder: Path, section: WandbSection, subject: Subject) -> None:
        """Begin the run, or go on with it.

        Raises:
            StorageError: another process is telling W&B of the run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._id = folder, subject.id
        self._file = folder / f"{subject.id}.{section.mode}.json"
        self._lock = _locked(folder / f"{subject.id}.lock")
        self._note = read_note(self._file)
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
        # late: what W&B's process outlived a killed one by is in its file by now
        unread = self._unread() if section.mode == "offline" else {}
        seen = max([self._run.step, *unread.values()])
        self._note, self._told = self._note.gone_on(seen, tuple(unread)), set[str]()

    def sent(self) -> frozenset[str]:
        """Return the parts that were sent."""
        return self._note.sent | self._told

    def send(self, part: Part) -> None:
        """Send the points of a part that W&B does not have."""
        self._note, places = self._note.with_part(part.name, [one.order for one in part.points])
        write_note(self._file, self._note)
        for one in part.points:
            if one.order not in places:
                continue
            values: dict[str, Any] = {one.axis: one.number, **one.named}
            if part.samples and one is part.points[-1]:
                rows = [list(row.values()) for row in part.samples]
                values["samples"] = wandb.Table(columns=list(part.samples[0]), data=rows)
            self._run.log(values, step=places[one.order])
        self._told.add(part.name)

    def attach(self, report: Path) -> None:
        """Send the report as the newest version of an artifact."""
        artifact = wandb.Artifact(f"report-{self._id}", type="report")
        artifact.add_file(str(report))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish, and only then note that what was sent is there."""
        self._run.finish()
        write_note(self._file, self._note.finished(frozenset(self._told), self._own))
        self._lock.close()

    @property
    def _own(self) -> str:
        """Name of the folder that this process writes."""
        return Path(self._run.dir).parent.name

    def _unread(self) -> dict[str, int]:
        """Return, of each folder that no process finished, the step after its last.

        They are made such that `wandb sync` takes them: at one that it does not, it ends. Those
        that begin within a second have names with a number behind.
        """
        steps = dict[str, int]()
        for one in self._folder.glob(f"wandb/offline-run-*/run-{self._id}.wandb"):
            if one.parent.name not in self._note.folders | {self._own}:
                step = settled(one)
                if step is not None:
                    steps[one.parent.name] = step
        return steps


def _locked(path: Path) -> Any:
    """Return an open file that no other process has locked.

    Raises:
        StorageError: another one has.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StorageError(
            f"another process is telling W&B of this run ({path} is locked)"
        ) from error
    return file
