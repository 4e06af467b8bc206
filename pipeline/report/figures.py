"""The figures of a run that its report shows, gathered from what is stored of it.

What looks wrong is judged from these alone (`findings`).
"""

from dataclasses import dataclass

import polars as pl

from pipeline.report.stored.records import RunRecords, read_records
from pipeline.report.stored.rounds import round_frame, step_frame
from pipeline.report.tokens.looked import Looked
from pipeline.report.tokens.places import (
    by_family,
    by_position,
    by_round,
    by_token,
    family_column,
    free_columns,
)
from pipeline.report.tokens.reading import Sample, read_sample
from pipeline.runs.alarms.judging import Alarm, run_alarms
from pipeline.runs.run import Run
from schemas.errors import ConfigError
from schemas.foreign import printable


@dataclass(frozen=True)
class Places:
    """Where the KL of a round's samples sits; frames as `tokens.places` makes them."""

    round: int
    rows: int
    """Sequences that this was taken of."""
    positions: pl.DataFrame
    tokens: pl.DataFrame
    families: pl.DataFrame | None
    """None where no column of the prompt file divides the prompts."""


@dataclass(frozen=True)
class RunFigures:
    """Everything that is shown of one run but its transcripts."""

    name: str
    """What the page calls the run: its own name, with a number where two are called the same."""
    records: RunRecords
    rounds: pl.DataFrame
    """A row for each round, as `round_frame` and `by_round` make them."""
    steps: pl.DataFrame
    """A row for each optimizer step."""
    sample: Sample
    """Sequences that were read, with their tokens."""
    column: str | None
    """Free column of the prompt file that divides prompts into families."""
    places: tuple[Places, ...]
    """Of the first and of the newest round that was looked at."""
    alarms: tuple[Alarm, ...] = ()
    """As `opd status` raises them."""

    @property
    def last(self) -> dict[str, float | None]:
        """The newest value of each figure of a round; rounds may still lack some."""
        return {name: _newest(self.rounds[name]) for name in self.rounds.columns}


def gather(run: Run, name: str, *, rows: int, column: str | None = None) -> RunFigures:
    """Return the figures of a run.

    Args:
        run: the run.
        name: what the page calls it.
        rows: sequences of a round whose tokens are looked at, at most.
        column: free column of the prompt file that divides prompts into families; None takes the
            one that tells the most apart.

    Raises:
        ConfigError: no prompt that was read has the column.
        DataError: a stored record is damaged.
    """
    records = read_records(run)
    sample = read_sample(records, rows)
    looked = sample.trained
    _check_column(looked, column)
    column = column or family_column(looked)
    numbers = looked.rows["round"].unique().sort().to_list()
    ends = dict.fromkeys([*numbers[:1], *numbers[-1:]])
    return RunFigures(
        name=name,
        records=records,
        rounds=round_frame(records).join(by_round(looked), on="round", how="left"),
        steps=step_frame(records),
        sample=sample,
        column=column,
        places=tuple(_places(looked, number, column) for number in ends),
        alarms=tuple(run_alarms(run, [one.round for one in records.rounds])),
    )


def _check_column(looked: Looked, column: str | None) -> None:
    there = free_columns(looked)
    if column is not None and len(looked.rows) and column not in there:
        names = ", ".join(sorted(there)) or "none"
        raise ConfigError(
            f"--by {column}: no prompt that was read has such a free column with a text or a "
            f"number; there are: {printable(names)}"
        )


def _places(looked: Looked, number: int, column: str | None) -> Places:
    tokens = looked.tokens.filter(pl.col("round") == number)
    return Places(
        round=number,
        rows=int((looked.rows["round"] == number).sum()),
        positions=by_position(tokens),
        tokens=by_token(tokens),
        families=None if column is None else by_family(looked, column, tokens),
    )


def _newest(values: pl.Series) -> float | None:
    known = values.drop_nulls()
    return None if known.is_empty() else known[-1]
