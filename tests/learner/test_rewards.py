"""Rewards of a round at the learner: advantages row by row, and what does not belong together."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.learner.feed.advantages import RewardInputs
from pipeline.learner.feed.data import RoundData
from pipeline.learner.inputs import find_inputs
from pipeline.objectives.advantages import group_advantages
from pipeline.runs.run import Run
from pipeline.shards.rewards import write_rewards
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import GRADE, REWARDS
from schemas.records.rewards import RewardManifest
from schemas.records.shards import UnitShard
from schemas.rewardtable import REWARDS as TABLE
from tests.learner.feed.test_data import Stored, store
from tests.support.minimal import minimal_run
from tests.support.paperrun import (
    put,
    put_checkpoint,
    put_rollout,
    put_scores,
    put_teacher,
    units_of,
)

WORDS: dict[str, Any] = {"grader": "last_number", "pattern": None, "unfinished": "zero", "code": []}


def store_rewards(storage: Storage, stored: Stored, rewards: list[list[float | None]]) -> Any:
    """Store rewards of a stored rollout, unit by unit; return their manifest."""
    units = []
    for unit, table, values in zip(stored.rollout.units, stored.tables, rewards, strict=True):
        columns = {name: table.column(name) for name in TABLE.names[:3]}
        faults = ["died" if value is None else None for value in values]
        columns |= {"reward": values, "fault": faults, "words": [None] * len(values)}
        data = write_rewards(pa.table(columns, schema=TABLE), WORDS, where="x")
        shard = content_shard(REWARDS, data, rows=len(values), tokens=unit.shard.tokens)
        storage.put(shard.key, data)
        units.append(UnitShard(unit=unit.unit, shard=shard))
    return manifest_of(stored.rollout, tuple(units))


def manifest_of(rollout: Any, units: tuple[UnitShard, ...], **changes: Any) -> RewardManifest:
    fields: dict[str, Any] = {
        "run": rollout.run,
        "round": rollout.round,
        "identity": WORDS,
        "grader": fingerprint(WORDS),
        "rollout_fingerprint": rollout.fingerprint,
        "fingerprint": "rewards",
        "units": units,
        "rows": sum(unit.shard.rows for unit in units),
        "tokens": sum(unit.shard.tokens for unit in units),
        "rewarded": sum(unit.shard.rows for unit in units),
        "mean": 0.5,
        "faults": {},
        "groups": 1,
        "groups_without_spread": 0,
    }
    return RewardManifest(**(fields | changes))


def given(stored: Stored) -> list[list[float | None]]:
    """Return a reward for each row, none for some."""
    random = np.random.default_rng(3)
    draws = [random.integers(0, 3, table.num_rows).tolist() for table in stored.tables]
    return [[None if draw == 2 else float(draw) for draw in unit] for unit in draws]


@pytest.mark.parametrize("keep", [1, 9])
def test_each_row_has_the_advantage_of_its_reward_in_its_prompts_group(
    memory: Storage, keep: int
) -> None:
    stored = store(memory)
    rewards = given(stored)
    inputs = RewardInputs(store_rewards(memory, stored, rewards), "rloo")
    data = RoundData(memory, stored.rollout, stored.manifests, keep=keep, rewards=inputs)
    flat = np.array([NAN if r is None else r for unit in rewards for r in unit])
    prompts = [p for table in stored.tables for p in table.column("prompt_id").to_pylist()]
    _, groups = np.unique(prompts, return_inverse=True)
    expected = group_advantages(flat, groups, kind="rloo")
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    order = np.random.default_rng(0).permutation(len(flat))
    for rows in np.array_split(order, 4):
        found = data.batch(rows)
        units = np.searchsorted(np.cumsum([t.num_rows for t in stored.tables]), rows, side="right")
        grouped = rows[np.argsort(units, kind="stable")]  # rows come grouped by unit
        assert found.advantage_B is not None and found.advantage_B.dtype == np.float32
        np.testing.assert_array_equal(found.advantage_B, expected[grouped])
        one = found.take(np.array([0]))
        np.testing.assert_array_equal(one.advantage_B, found.advantage_B[:1])


NAN = float("nan")


def test_without_rewards_there_are_no_advantages(memory: Storage) -> None:
    batch = store(memory).open(memory).batch(np.array([0, 1]))
    assert batch.advantage_B is None and batch.take(np.array([0])).advantage_B is None


def test_rewards_of_other_sequences_are_refused(memory: Storage) -> None:
    stored = store(memory)
    turned = [table.take(list(range(table.num_rows))[::-1]) for table in stored.tables]
    other = Stored(turned, stored.scores, stored.rollout, stored.manifests)
    inputs = RewardInputs(store_rewards(memory, other, given(stored)), "grpo")
    data = RoundData(memory, stored.rollout, stored.manifests, keep=4, rewards=inputs)
    with pytest.raises(DataError, match="the rewards of its rows are of other sequences"):
        data.batch(np.array([0]))


@pytest.fixture
def run(memory: Storage) -> Run:
    """Return a run whose round 0 is sampled and scored."""
    found = minimal_run(memory, "reward.grader=last_number")
    put_rollout(found, 0)
    put_checkpoint(found, 0)
    put_teacher(found, "main")
    put_scores(found, 0, "main")
    return found


def put_rewards(run: Run, **changes: Any) -> None:
    manifest = manifest_of(run.rollout(0), units_of(REWARDS, "rewards"), **changes)
    put(run, run.manifest_key(0, GRADE), manifest)


def test_rewards_are_part_of_what_a_round_is_trained_on(run: Run) -> None:
    with pytest.raises(ConfigError, match="round 0 has no rewards: run `opd grade --round 0`"):
        find_inputs(run, 0)
    put_rewards(run)
    found, plain = find_inputs(run, 0), find_inputs(minimal_run(run.storage), 0)
    other = minimal_run(run.storage, "reward.grader=last_number", "reward.advantage=rloo")
    prints = {one.fingerprint for one in (found, plain, find_inputs(other, 0))}
    assert len(prints) == 3 and plain.rewards is None
    assert len(found.shard_keys()) == len(plain.shard_keys()) + 2
    put_rewards(run, fingerprint="another")
    assert find_inputs(run, 0).fingerprint not in prints


def test_rewards_by_another_grader_or_of_another_rollout_are_refused(run: Run) -> None:
    put_rewards(run)
    settings = ("reward.grader=last_number", "reward.unfinished=none")
    with pytest.raises(IdentityError, match=r"'unfinished': 'zero'.*'none'.*--again"):
        find_inputs(minimal_run(run.storage, *settings), 0)
    put_rewards(run, rollout_fingerprint="another")
    with pytest.raises(IdentityError, match="was made by other work"):
        find_inputs(run, 0)


def test_rewards_that_do_not_cover_each_unit_are_refused(run: Run) -> None:
    few = units_of(REWARDS, "few", rows=1)
    manifest = manifest_of(run.rollout(0), few)
    put(run, run.manifest_key(0, GRADE), manifest)
    with pytest.raises(DataError, match="does not grade the rows of its rollout, unit by unit"):
        find_inputs(run, 0)
