"""The ledger of a run: records of engines that were held against transformers.

Promises: what one process has held, no other one of the run holds again; nothing is written of a
run before it is pinned.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.runs.run import Run
from pipeline.store.records import create_record, find_record
from schemas.fingerprint import fingerprint
from schemas.keys import ENGINE, admission_key, run_key
from schemas.records.runs import AdmissionRecord


class RunLedger:
    """Records below a run's `admission/engine`, kept as soon as the run is pinned."""

    def __init__(self, run: Run) -> None:
        """Name the run; nothing is read yet."""
        self._run = run
        self._waiting: list[AdmissionRecord] = []

    def has(self, seen: Mapping[str, Any]) -> bool:
        """Return whether an engine of which the same is seen was held.

        Raises:
            DataError: the record of it is damaged.
        """
        key = admission_key(self._run.name, ENGINE, fingerprint(dict(seen)))
        return find_record(self._run.storage, key, AdmissionRecord) is not None

    def keep(self, seen: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        """Remember that one was held, and how far it was away."""
        self._waiting.append(
            AdmissionRecord(
                run=self._run.name,
                subject=ENGINE,
                seen=dict(seen),
                fingerprint=fingerprint(dict(seen)),
                figures=dict(figures),
            )
        )
        if self._run.storage.exists(run_key(self._run.name)):
            self.write()

    def write(self) -> None:
        """Write what waits, for a run that is pinned by now."""
        while self._waiting:
            record = self._waiting[-1]
            key = admission_key(record.run, record.subject, record.fingerprint)
            create_record(self._run.storage, key, record)
            self._waiting.pop()
