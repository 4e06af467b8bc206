"""MLflow: one run in an experiment, in a database of this machine or at a server.

A point's time is made of its place, so that what is sent twice is one row of MLflow; a tag for each
part, which comes last, says that it was sent.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pipeline.store.place import ConfigPlace
from pipeline.trackers.tracker import Part, Subject, Tracker, local_path
from schemas.config.tracking.track import MLflowSection, TrackSection, is_server

AT_ONCE, PARAMS, LONGEST = 1000, 100, 6000
"""What MLflow takes at once: metrics, settings, and characters of one."""

ID, SENT, TABLES = "opd.id", "opd.sent.", "mlflow.loggedArtifacts"
"""Tags: which run it is, what it has, and, of MLflow, its tables."""


def opened(place: ConfigPlace, section: TrackSection, subject: Subject) -> Tracker:
    """Return the tracker as it is configured."""
    assert section.mlflow is not None
    return MLflow(place, section.mlflow, subject)


class MLflow:
    """One run in MLflow."""

    def __init__(self, place: ConfigPlace, section: MLflowSection, subject: Subject) -> None:
        """Find the run, or create it, and tell its settings."""
        uri, files = _places(place, section.uri)
        self._client: Any = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(section.experiment)
        experiment = (
            self._client.create_experiment(section.experiment, artifact_location=files)
            if found is None
            else found.experiment_id
        )
        query = f"tags.`{ID}` = '{subject.id}'"
        runs = self._client.search_runs([experiment], filter_string=query)
        tags = {ID: subject.id}
        run = runs[0] if runs else self._client.create_run(experiment, None, tags, subject.name)
        self._id, self._start = run.info.run_id, run.info.start_time
        self._tags: dict[str, str] = dict(run.data.tags)
        self._client.update_run(self._id, status="RUNNING")
        known = run.data.params
        params = [
            Param(_named(name), value[:LONGEST])
            for name, value in subject.settings.items()
            if _named(name) not in known  # one that was told cannot be told again otherwise
        ]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(self._id, params=params[start : start + PARAMS])

    def sent(self) -> frozenset[str]:
        """Return the parts that have a tag."""
        return frozenset(n.removeprefix(SENT) for n in self._tags if n.startswith(SENT))

    def send(self, part: Part) -> None:
        """Send a part, and then its tag."""
        metrics = [
            Metric(_named(name), value, self._start + one.order, one.number)
            for one in part.points
            for name, value in one.named.items()
        ]
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[start : start + AT_ONCE])
        if part.samples:
            self._table(f"samples/{part.name}.json", part.samples)
        self._tag(f"{SENT}{part.name}", "yes")

    def attach(self, report: Path) -> None:
        """Send the report in place of the one before."""
        self._client.log_artifact(self._id, str(report))

    def close(self) -> None:
        """Say that nothing comes for now."""
        self._client.set_terminated(self._id)

    def _table(self, file: str, rows: Sequence[Any]) -> None:
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_dict(self._id, table, file)
        known = json.loads(self._tags.get(TABLES, "[]"))
        entry = {"path": file, "type": "table"}
        if entry not in known:
            self._tag(TABLES, json.dumps([*known, entry][-50:]))

    def _tag(self, name: str, value: str) -> None:
        self._client.log_batch(self._id, tags=[RunTag(name, value)])
        self._tags[name] = value


def _places(place: ConfigPlace, uri: str) -> tuple[str, str | None]:
    """Return what MLflow calls its store, and where files go that are sent to a database."""
    if is_server(uri):
        return uri, None
    path = local_path(place, uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}", path.with_suffix(".artifacts").as_uri()


def _named(name: str) -> str:
    """Return a name that MLflow allows."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]
