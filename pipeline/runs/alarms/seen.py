"""What is read of a run to judge it: manifests and steps of its first and its newest rounds.

Promises: the same few small objects however long the run is; no shard of sequences.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runs.run import Run
from pipeline.shards.parquet import read_table
from schemas.config.run import RunConfig
from schemas.errors import DataError
from schemas.keys import ROUNDS
from schemas.records.joins import added_looks
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest, TokenLooks
from schemas.records.training import TrainManifest

NEWEST = 8
"""Rounds that are judged, beside the first: alarms began in one of them or before."""

Steps = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Seen:
    """What is stored of one round, so far."""

    round: int
    config: RunConfig
    rollout: RolloutManifest | None = None
    scores: tuple[ScoreManifest, ...] = ()
    train: TrainManifest | None = None
    steps: Steps | None = None
    """Figures of its optimizer steps by name, NaN where they are none; None where not stored."""

    @cached_property
    def looks(self) -> TokenLooks | None:
        """Return the sums over the tokens of all teachers; None where one of them has none."""
        return added_looks([one.looks for one in self.scores])


def begun_rounds(run: Run) -> list[int]:
    """Return the numbers of the rounds that have begun, from one listing."""
    names = run.storage.folders(f"{run.folder}/{ROUNDS}")
    return sorted(int(name) for name in names if name.isdecimal())


def judged_rounds(rounds: Sequence[int]) -> list[int]:
    """Return which of some rounds are read: the first and the newest ones."""
    return sorted({*rounds[:1], *rounds[-NEWEST:]})


def look_at(run: Run, rounds: Sequence[int]) -> list[Seen]:
    """Return what is stored of the first and the newest of some rounds.

    Raises:
        DataError: a manifest is damaged.
    """
    asked = judged_rounds(rounds)
    with ThreadPoolExecutor(max(len(asked), 1), "opd-alarms") as pool:
        return list(pool.map(partial(_seen, run), asked))


def _seen(run: Run, index: int) -> Seen:
    train = run.train(index)
    return Seen(
        round=index,
        config=run.config,
        rollout=None if run.config.is_supervised else run.rollout(index),
        scores=tuple(s for name in run.config.teachers if (s := run.score(index, name))),
        train=train,
        steps=None if train is None else _steps(run, train),
    )


def _steps(run: Run, train: TrainManifest) -> Steps | None:
    """Return a round's steps; None where they are gone or damaged, which other views tell."""
    with suppress(DataError):
        data = run.storage.get(train.metrics.key)
        if data is None:
            return None
        table, _ = read_table(data, where=run.storage.url(train.metrics.key), rows=train.steps)
        return {name: _floats(table[name]) for name in table.column_names}
    return None


def _floats(column: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(column.to_numpy(), dtype=np.float64)
    except (ValueError, TypeError):
        return np.full(len(column), np.nan)
