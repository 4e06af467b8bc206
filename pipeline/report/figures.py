"""The figures of a run that its report shows, gathered from what is stored of it.

What looks wrong is judged from these alone (`findings`).
"""

from dataclasses import dataclass

import polars as pl

from pipeline.report.records import RunRecords, read_records
from pipeline.report.rounds import round_frame, step_frame
from pipeline.runs.run import Run


@dataclass(frozen=True)
class RunFigures:
    """Everything that is shown of one run but its transcripts."""

    name: str
    """What the page calls the run: its own name, with its root where two are called the same."""
    records: RunRecords
    rounds: pl.DataFrame
    """A row for each round, as `round_frame` makes them."""
    steps: pl.DataFrame
    """A row for each optimizer step."""

    @property
    def last(self) -> dict[str, float | None]:
        """The newest value of each figure of a round; rounds may still lack some."""
        if self.rounds.is_empty():
            return {}
        return {name: _newest(self.rounds[name]) for name in self.rounds.columns}


def gather(run: Run, name: str) -> RunFigures:
    """Return the figures of a run.

    Raises:
        DataError: a stored record is damaged.
    """
    records = read_records(run)
    return RunFigures(name, records, round_frame(records), step_frame(records))


def _newest(values: pl.Series) -> float | None:
    known = values.drop_nulls()
    return None if known.is_empty() else known[-1]
