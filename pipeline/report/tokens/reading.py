"""Reading of the sequences that a report looks at: some rows of some rounds, with their scores.

Promises: what is read does not grow with rounds or their size beyond a bound; a shard that is gone
or damaged is left out and told.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.report.stored.records import RoundRecords, RunRecords
from pipeline.report.tokens.looked import Looked, looked_at
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import rows_of_shard
from pipeline.store.storage import Storage
from schemas.columns import list_lengths
from schemas.errors import DataError, IdentityError
from schemas.records.shards import Shard, UnitShard

T = TypeVar("T")

MOST_ROUNDS = 24
"""Rounds whose sequences are read, evenly spread, the first and the newest among them."""

MOST_TOKENS = 50_000
"""Tokens of a round that are looked at."""

READERS = 4
"""Rounds that are read at once."""


@dataclass(frozen=True)
class Sample:
    """What was read of a run."""

    trained: Looked
    """Sequences of rounds, with their teachers' scores."""
    held_out: Looked
    """Sequences of evaluations, which no teacher scores."""
    notes: tuple[str, ...]
    """What could not be read."""


def read_sample(records: RunRecords, most_rows: int) -> Sample:
    """Return some sequences of a run.

    Args:
        records: what is stored of it.
        most_rows: sequences of a round, at most.
    """
    rounds = _spread(records.rounds, MOST_ROUNDS)
    notes: list[str] = []
    storage = records.run.storage
    with ThreadPoolExecutor(READERS) as pool:
        trained = list(pool.map(partial(_round, storage, most_rows, notes), rounds))
        graded = list(pool.map(partial(_graded, storage, most_rows, notes), rounds))
    return Sample(Looked.joined(trained), Looked.joined(graded), tuple(sorted(set(notes))))


def _spread(values: Sequence[T], most: int) -> list[T]:
    """Return some of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    places = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[place] for place in places]


def _round(storage: Storage, most_rows: int, notes: list[str], one: RoundRecords) -> Looked:
    if one.rollout is None or not one.scores:
        return Looked.joined([])
    parts: list[Looked] = []
    for unit in _units(one.rollout.units, most_rows):
        read = sum(len(part.rows) for part in parts)
        parts += _unit(storage, one, unit, most_rows - read, notes)
    return Looked.joined(parts)


def _units(units: Sequence[UnitShard], most_rows: int) -> list[UnitShard]:
    """Return as many units as have so many rows, evenly spread."""
    rows = sum(unit.shard.rows for unit in units) / max(len(units), 1)
    return _spread(units, max(1, int(np.ceil(most_rows / max(rows, 1)))))


def _unit(
    storage: Storage, one: RoundRecords, unit: UnitShard, most_rows: int, notes: list[str]
) -> Iterator[Looked]:
    """Yield the rows of a unit that are looked at, of each teacher that scored it."""
    try:
        table = read_rollout(storage, unit.shard)
    except DataError as error:
        notes.append(f"{error}")
        return
    for name, manifest in one.scores.items():
        mine = table.filter(pc.equal(table["teacher"], name))
        shards = {scored.unit: scored.shard for scored in manifest.units}
        share = round(most_rows * mine.num_rows / table.num_rows)
        rows = _some(mine, min(most_rows, max(share, 1)))
        if not len(rows):
            continue
        try:
            scores = _scores(storage, shards.get(unit.unit), manifest.scorer, mine, rows)
            yield looked_at(mine.take(pa.array(rows)), scores, where=f"{manifest.scorer}")
        except (DataError, IdentityError) as error:
            notes.append(f"{error}")


def _scores(
    storage: Storage, shard: Shard | None, scorer: str, mine: pa.Table, rows: NDArray[np.int64]
) -> pa.Table:
    if shard is None or shard.rows != mine.num_rows:
        found = "no scores" if shard is None else f"{shard.rows} rows of scores"
        raise DataError(
            f"scorer {scorer} has {found} of a unit, where its rollout has {mine.num_rows} rows"
        )
    return rows_of_shard(storage, shard, storage.read_shard(shard), scorer=scorer, rows=rows)


def _graded(storage: Storage, most_rows: int, notes: list[str], one: RoundRecords) -> Looked:
    """Return sequences of a round's evaluation: the first ones, which are those of every round."""
    if one.evaluation is None:
        return Looked.joined([])
    try:
        table = read_rollout(storage, one.evaluation.units[0].shard)
    except DataError as error:
        notes.append(f"{error}")
        return Looked.joined([])
    rows = _some(table, min(most_rows, MOST_HELD_OUT))
    after = pa.array(np.full(len(rows), one.round), pa.int32())
    some = table.take(pa.array(rows))
    place = some.column_names.index("round")
    return looked_at(some.set_column(place, "round", after), None, where="")


MOST_HELD_OUT = 12
"""Held-out sequences of a round that are read: enough to follow a prompt from round to round."""


def _some(table: pa.Table, most: int) -> NDArray[np.int64]:
    """Return the first rows of a table, as many as are allowed and their tokens allow."""
    tokens = np.cumsum(list_lengths(table, "response_ids"))
    fit = int(np.searchsorted(tokens, MOST_TOKENS, side="right"))
    count = min(most, max(fit, 1), table.num_rows)
    return np.arange(max(count, 0), dtype=np.int64)
