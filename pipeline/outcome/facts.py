"""What cards tell of a run, read once from its small records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.stored.records import RoundRecords, RunRecords, read_records
from pipeline.runs.gate import Gap, measured_gap
from pipeline.runs.run import Run, check_run
from pipeline.store.records import find_record
from schemas.errors import ConfigError
from schemas.keys import run_key
from schemas.records.runs import RunRecord


@dataclass(frozen=True)
class Facts:
    """A run that has begun."""

    records: RunRecords
    record: RunRecord
    """What the run is."""

    @property
    def run(self) -> Run:
        """The run."""
        return self.records.run

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that define its results, by dotted key."""
        return self.record.identity

    def before(self, number: int) -> Sequence[RoundRecords]:
        """Return the rounds that a checkpoint has learned from."""
        return [one for one in self.records.rounds if one.round < number]

    def scorers(self, teacher: str) -> list[str]:
        """Return under which names the cache holds a teacher's scores."""
        scores = [one.scores[teacher] for one in self.records.rounds if teacher in one.scores]
        return list(dict.fromkeys(one.scorer for one in scores))

    def gap(self, number: int) -> Gap | None:
        """Return the reverse KL of a checkpoint to its teachers, where a round has measured it."""
        found = next((one for one in self.records.rounds if one.round == number), None)
        if found is None or set(found.scores) < set(self.run.config.teachers):
            return None
        return measured_gap(self.run, number, list(found.scores.values()))


def read_facts(run: Run) -> Facts:
    """Return what is stored of a run.

    Raises:
        ConfigError: the run has not begun.
        IdentityError: the configuration is not the one that it began with.
        DataError: a record is damaged.
    """
    record = find_record(run.storage, run_key(run.name), RunRecord)
    if record is None:
        raise ConfigError(
            f"run {run.name} at {run.storage.root} has not begun: there is nothing to export. "
            "Start it with `opd run`, or correct run.name and run.root"
        )
    check_run(run)
    return Facts(read_records(run), record)
