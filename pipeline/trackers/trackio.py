"""trackio: one run in the database of a project, in a folder of this machine.

A part is one transaction, and each of its points has a name of its own in the database: what is
sent twice is one row, and a part is there whole or not at all.
"""

import os
from pathlib import Path
from typing import Any

from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Part, Subject, Tracker, local_path
from schemas.config.tracking.track import TrackioSection, TrackSection
from schemas.errors import ConfigError

FOLDER = "TRACKIO_DIR"
"""Variable by which trackio, as it is imported, knows its folder."""

ALL = 10**6
"""More rows than a run has parts."""


def opened(place: ConfigPlace, section: TrackSection, subject: Subject) -> Tracker:
    """Return the tracker as it is configured."""
    assert section.trackio is not None
    return Trackio(local_path(place, section.trackio.folder), section.trackio, subject)


class Trackio:
    """One run in trackio."""

    def __init__(self, folder: Path, section: TrackioSection, subject: Subject) -> None:
        """Find the project, or make it.

        Raises:
            ConfigError: this process has told another folder, and the library knows one only.
        """
        os.environ[FOLDER] = str(folder)
        from trackio import cas, utils
        from trackio.sqlite_storage import SQLiteStorage

        if folder != utils.TRACKIO_DIR:
            raise ConfigError(
                f"this process has trackio write to {utils.TRACKIO_DIR}, and it writes to one "
                f"folder only: use another process for {folder}"
            )
        self._subject, self._project = subject, section.project
        self._store: Any = SQLiteStorage
        self._files: Any = cas
        self._store.validate_project_name(self._project)
        self._store.init_db(self._project)

    def sent(self) -> frozenset[str]:
        """Return the parts whose last point is there, and so the whole part."""
        begin = f"{self._subject.id}/"
        query = (
            "SELECT log_id FROM metrics WHERE log_id IS NOT NULL "
            f"AND log_id GLOB '{begin}*' AND log_id NOT GLOB '{begin}*/*'"
        )
        found = self._store.query_project(self._project, query, max_rows=ALL)
        return frozenset(row["log_id"].removeprefix(begin) for row in found["rows"])

    def send(self, part: Part) -> None:
        """Send a part and the settings, by one transaction."""
        figures: list[dict[str, Any]] = [one.named for one in part.points]
        if part.samples:
            rows = [dict(row) for row in part.samples]
            figures[-1]["samples"] = {"_type": "trackio.table", "_value": rows}
        name = f"{self._subject.id}/{part.name}"
        self._store.bulk_log(
            project=self._project,
            run=self._subject.name,
            run_id=self._subject.id,
            metrics_list=figures,
            steps=[one.number for one in part.points],
            log_ids=[*(f"{name}/{one.number}" for one in part.points[:-1]), name],
            config=dict(self._subject.settings),
        )

    def attach(self, report: Path) -> None:
        """Send the report as the only version of an artifact."""
        digest, size = self._files.stage_blob_into_project(report, self._project)
        self._store.commit_artifact_version(
            project=self._project,
            name=f"report-{self._subject.id}",
            type="report",
            description=None,
            manifest=[{"path": report.name, "digest": digest, "size": size}],
            metadata=None,
            aliases=None,
            run_name=self._subject.name,
            run_id=self._subject.id,
            overwrite=True,
        )

    def close(self) -> None:
        """Do nothing: what was sent is there."""
