"""How difficult the prompts of a run are: what its last round measured, and what that carried on.

Promises: only the round before is read, however long the run is. Shapes: R prompts of the table.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.runs.run import Run
from pipeline.scores.drift import FLOOR_OF_LOGPROBS
from pipeline.shards.parquet import read_table, write_table
from pipeline.shards.rewards import read_rewards
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from schemas.columns import flat_values, list_lengths
from schemas.errors import ConfigError, DataError
from schemas.keys import PROMPTS
from schemas.records.shards import Shard
from schemas.tables import check_table

By = Literal["kl", "reward"]

Values = NDArray[np.float64]

TABLE = pa.schema([pa.field("difficulty", pa.float64())])
"""Difficulty of each prompt in the order of the run's table; null where it is not known."""

ROLLOUT_COLUMNS = ("prompt_id", "teacher", "response_mask", "rollout_student_logprobs")


def carried_on(run: Run, round_index: int, prompt_ids: pa.ChunkedArray) -> Values | None:
    """Return the difficulties that a round begins with, NaN of prompts that were never drawn.

    The newest measurement of a prompt counts. None before anything was measured.

    Args:
        run: the run.
        round_index: the round, which is not planned yet.
        prompt_ids: of the run's table.

    Raises:
        ConfigError: the round before has no rewards.
        DataError: what it stored is missing or damaged.
    """
    section = run.config.schedule
    if not round_index or section is None or section.prompts is None:
        return None
    before = run.plan(round_index - 1)
    told = None if before is None or before.schedule is None else before.schedule.prompts
    known_R = np.full(len(prompt_ids), np.nan)
    if told is not None and told.difficulty is not None:
        known_R = read_difficulty(run.storage, told.difficulty)
    parts = list(_measured(run, round_index - 1, section.prompts.by))
    ids = pa.chunked_array([part[0] for part in parts], pa.string())
    sums, counts = (np.concatenate(column) for column in zip(*(p[1:] for p in parts), strict=True))
    place = pc.index_in(ids, value_set=prompt_ids).to_numpy()
    if np.isnan(place.astype(np.float64)).any():
        raise DataError(
            f"round {round_index - 1} of run {run.name} sampled a prompt that is not among those "
            "that the run has pinned: restore its records"
        )
    total_R, count_R = (np.bincount(place, column, len(known_R)) for column in (sums, counts))
    return np.where(count_R > 0, total_R / np.maximum(count_R, 1e-300), known_R)


def difficulty_shard(difficulty_R: Values) -> tuple[Shard, bytes]:
    """Return where difficulties are stored, and their bytes."""
    column = pa.array(difficulty_R, pa.float64(), from_pandas=True)
    data = write_table(pa.table([column], schema=TABLE), {})
    return content_shard(PROMPTS, data, rows=len(difficulty_R), tokens=0), data


def read_difficulty(storage: Storage, shard: Shard) -> Values:
    """Return stored difficulties, NaN where they are not known.

    Raises:
        DataError: the object is missing, corrupt or misshapen.
    """
    where = storage.url(shard.key)
    table, _ = read_table(storage.read_shard(shard), where=where, rows=shard.rows)
    check_table(table, TABLE, where=where)
    return np.asarray(table.column("difficulty").to_numpy(), dtype=np.float64)


_Part = tuple[pa.ChunkedArray, Values, Values]
"""Of some rows: their prompts, sums of what is measured, and how much was summed."""


def _measured(run: Run, round_index: int, by: By) -> Iterator[_Part]:
    return _by_reward(run, round_index) if by == "reward" else _by_kl(run, round_index)


def _by_reward(run: Run, round_index: int) -> Iterator[_Part]:
    """Yield minus the rewards of a round's rows, where they have one."""
    manifest = run.rewards(round_index)
    if manifest is None:
        raise ConfigError(
            f"schedule.prompts.by = 'reward' needs the rewards of round {round_index}, which is "
            f"not graded: run `opd grade --round {round_index}` first"
        )
    for unit in manifest.units:
        table = read_rewards(run.storage, unit.shard)
        table = table.filter(table.column("reward").is_valid())
        rewards = table.column("reward").to_numpy().astype(np.float64)
        yield table.column("prompt_id"), -rewards, np.ones(len(rewards))


def _by_kl(run: Run, round_index: int) -> Iterator[_Part]:
    """Yield the sampled KL(student‖teacher) of a round's rows, summed over their tokens."""
    rollout = run.rollout(round_index)
    scores = {name: run.score(round_index, name) for name in run.config.teachers}
    missing = [name for name, manifest in scores.items() if manifest is None]
    if rollout is None or missing:
        raise ConfigError(
            f"schedule.prompts.by = 'kl' needs the scores of round {round_index}"
            f"{f' by teacher {missing[0]!r}' if missing else ''}: run "
            f"`opd score --round {round_index}` first"
        )
    for index, unit in enumerate(rollout.units):
        table = read_rollout(run.storage, unit.shard, columns=ROLLOUT_COLUMNS)
        for name, manifest in scores.items():
            rows = np.flatnonzero(pc.equal(table.column("teacher"), name).to_numpy())
            if manifest is None or not len(rows):
                continue
            shard = manifest.units[index].shard
            found = read_scores(run.storage, shard, scorer=manifest.scorer)
            mine = table.take(pa.array(rows))
            yield mine.column("prompt_id"), *_gaps(mine, found, run.storage.url(shard.key))


def _gaps(rows: pa.Table, scores: pa.Table, where: str) -> tuple[Values, Values]:
    """Return the sum over each row's own tokens of log μ − log p, and their number."""
    lengths = list_lengths(rows, "response_mask")
    if not np.array_equal(lengths, list_lengths(scores, "token_logprob")):
        raise DataError(f"{where} has another number of scored tokens than the responses have")
    own = flat_values(rows, "response_mask")
    teacher = np.maximum(flat_values(scores, "token_logprob"), FLOOR_OF_LOGPROBS)
    gap = (flat_values(rows, "rollout_student_logprobs") - teacher).astype(np.float64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.bincount(row, np.where(own, gap, 0.0), len(lengths)).astype(np.float64)
    return sums, np.bincount(row[own], minlength=len(lengths)).astype(np.float64)
