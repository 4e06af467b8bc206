"""The learner's batches against a row-by-row reading of the same tables, and every mismatch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.learner.feed.data import RoundData
from pipeline.store.storage import Storage
from schemas.errors import DataError, IdentityError
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest
from schemas.records.shards import UnitShard
from tests.support.countedreads import CountedReads
from tests.support.tinytables import (
    K,
    make_scorer,
    rollout_table,
    score_rows,
    store_rollout,
    store_scores,
)

SIZES = (5, 1, 7, 4)


@dataclass(frozen=True)
class Stored:
    """Tables and the manifests under which they are stored."""

    tables: list[pa.Table]
    scores: dict[str, list[pa.Table]]
    rollout: RolloutManifest
    manifests: dict[str, ScoreManifest]

    def open(self, storage: Storage, *, keep: int = 9) -> RoundData:
        """Return the learner's view."""
        return RoundData(storage, self.rollout, self.manifests, keep=keep)


def store(
    storage: Storage, teachers: Sequence[str] = ("main",), rounds: Sequence[int] = (0,)
) -> Stored:
    tables = [
        rollout_table(size, seed=i, teachers=teachers, rounds=rounds)
        for i, size in enumerate(SIZES)
    ]
    scores: dict[str, list[pa.Table]] = {}
    for number, name in enumerate(teachers):
        own = [table.filter(pc.equal(table.column("teacher"), name)) for table in tables]
        scores[name] = [score_rows(rows, seed=10 * number + i) for i, rows in enumerate(own)]
    manifests = {name: store_scores(storage, s, make_scorer(name)) for name, s in scores.items()}
    rollout = store_rollout(storage, tables, round_index=max(rounds))
    return Stored(tables, scores, rollout, manifests)


def reference_rows(stored: Stored) -> list[dict[str, Any]]:
    """Return every row with its scores, found by digest, as Python lists."""
    found = []
    for unit, table in enumerate(stored.tables):
        scores = {
            name: {row["sequence_digest"]: row for row in tables[unit].to_pylist()}
            for name, tables in stored.scores.items()
        }
        for row in table.to_pylist():
            score = scores[row["teacher"]][row["sequence_digest"]]
            found.append({**score, **row, "unit": unit})
    return found


def assert_batch(data: RoundData, rows: list[int], expected: list[dict[str, Any]]) -> None:
    batch = data.batch(np.array(rows))
    wanted = [expected[i] for i in sorted(rows, key=lambda i: expected[i]["unit"])]
    ids = [row.tolist() for row in batch.id_rows()]
    assert ids == [w["prompt_ids"] + w["response_ids"] for w in wanted]
    assert batch.prompt_tokens_B.tolist() == [len(w["prompt_ids"]) for w in wanted]
    assert batch.response_tokens_B.tolist() == [len(w["response_ids"]) for w in wanted]

    def joined(name: str) -> list[Any]:
        return [value for w in wanted for value in w[name]]

    assert batch.token_ids_T.tolist() == joined("response_ids")
    assert batch.rollout_logprob_T.tolist() == joined("rollout_student_logprobs")
    assert batch.teacher.tail_T.tolist() == joined("tail_logprobs")
    assert batch.teacher.token_logprob_T.tolist() == joined("token_logprob")
    for column, values_TK in (
        ("topk_ids", batch.teacher.topk_ids_TK),
        ("topk_logprobs", batch.teacher.topk_logprobs_TK),
    ):
        assert values_TK.shape == (len(batch.token_ids_T), K)
        assert values_TK.reshape(-1).tolist() == joined(column)
    assert batch.weight_T.tolist() == [
        w["weight"] if own else 0.0 for w in wanted for own in w["response_mask"]
    ]


@pytest.mark.parametrize("keep", [1, 9])
@pytest.mark.parametrize("teachers", [("main",), ("main", "second", "third")], ids=len)
def test_a_batch_equals_a_reading_row_by_row(
    memory: Storage, teachers: tuple[str, ...], keep: int
) -> None:
    stored = store(memory, teachers)
    data, expected = stored.open(memory, keep=keep), reference_rows(stored)
    random = np.random.default_rng(0)
    assert_batch(data, list(range(sum(SIZES))), expected)
    for size in range(1, 12):
        assert_batch(data, random.permutation(sum(SIZES))[:size].tolist(), expected)
    for row in range(sum(SIZES)):
        assert_batch(data, [row], expected)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, which it does soon."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_batches_that_are_read_ahead_equal_a_reading_row_by_row(memory: Storage, keep: int) -> None:
    stored = store(memory)
    data, expected = stored.open(memory, keep=keep), reference_rows(stored)
    random = np.random.default_rng(0)
    orders = [random.permutation(sum(SIZES))[:size] for size in (3, 17, 1, 5, 5, 2)]
    with data.reading_ahead(orders):
        for rows in orders:
            assert_batch(data, rows.tolist(), expected)
    assert_batch(data, [0], expected)


def test_units_are_read_once_in_the_order_of_need_and_no_more_than_are_kept(
    memory: Storage,
) -> None:
    stored = store(memory)
    counted, unit = CountedReads(memory.root), np.repeat(range(4), SIZES)
    data = stored.open(counted, keep=2)
    orders = [np.flatnonzero(unit == number) for number in (2, 2, 0, 3, 3, 1)]
    keys = [u.shard.key for u in stored.manifests["main"].units]
    with data.reading_ahead(orders):
        for number, rows in enumerate(orders):
            data.batch(rows)
            assert len(data._held) <= 2
            if number == 0:
                wait_for(lambda: counted.reads[keys[0]] == 1)
                assert (counted.reads[keys[3]], counted.reads[keys[1]]) == (0, 0)
    assert [counted.reads[key] for key in keys] == [1] * 4


def test_a_damaged_unit_is_told_by_the_batch_that_needs_it(memory: Storage) -> None:
    stored = store(memory)
    memory.delete(stored.manifests["main"].units[1].shard.key)
    data, unit = stored.open(memory), np.repeat(range(4), SIZES)
    orders = [np.flatnonzero(unit == number) for number in range(4)]
    with data.reading_ahead(orders):
        data.batch(orders[0])
        with pytest.raises(DataError):
            data.batch(orders[1])


def test_lengths_of_all_rows_are_known_before_any_score_is_read(memory: Storage) -> None:
    stored = store(memory)
    for unit in stored.manifests["main"].units:
        memory.delete(unit.shard.key)
    found, expected = stored.open(memory).read_lengths(oldest_round=0), reference_rows(stored)
    assert found.unit_rows_U.tolist() == list(SIZES)
    assert found.total_tokens_R.tolist() == [
        len(row["prompt_ids"]) + len(row["response_ids"]) for row in expected
    ]
    assert found.trained_tokens_R.tolist() == [sum(row["response_mask"]) for row in expected]
    assert found.fresh_R.all()
    assert found.usable_R.tolist() == [any(row["response_mask"]) for row in expected]


@pytest.mark.parametrize("oldest_round", [0, 2, 3, 9])
def test_rows_sampled_before_the_oldest_round_are_stale(memory: Storage, oldest_round: int) -> None:
    stored = store(memory, rounds=(0, 1, 2, 3))
    found = stored.open(memory).read_lengths(oldest_round=oldest_round)
    fresh = [row["round"] >= oldest_round for row in reference_rows(stored)]
    assert found.fresh_R.tolist() == fresh
    masks = [row["response_mask"] for row in reference_rows(stored)]
    assert found.usable_R.tolist() == [f and any(m) for f, m in zip(fresh, masks, strict=True)]


def test_only_the_units_used_last_are_held(memory: Storage) -> None:
    stored = store(memory)
    data = stored.open(memory, keep=2)
    first = np.cumsum([0, *SIZES])[:-1]

    def read(unit: int) -> None:
        data.batch(first[[unit]])

    for unit in (0, 1, 0, 2):  # 1 was used least lately, so 2 takes its place
        read(unit)
    for shard in stored.rollout.units:
        memory.delete(shard.shard.key)
    read(0)
    read(2)
    with pytest.raises(DataError, match="missing"):
        read(1)


@pytest.mark.parametrize("keep", [1, 3, 4])
def test_as_many_rollouts_as_are_held_are_read_once_and_the_others_twice(
    request: pytest.FixtureRequest, keep: int
) -> None:
    memory = CountedReads(f"memory://{abs(hash(request.node.nodeid))}")
    stored = store(memory)
    data = stored.open(memory, keep=keep)
    data.read_lengths(oldest_round=0)
    rollouts = [unit.shard.key for unit in stored.rollout.units]
    scores = [unit.shard.key for unit in stored.manifests["main"].units]
    assert [memory.reads[key] for key in rollouts] == [1] * len(SIZES)
    assert not any(memory.reads[key] for key in scores)
    for row in np.random.default_rng(keep).permutation(np.cumsum([0, *SIZES])[:-1]):
        data.batch(np.array([row]))
    assert [memory.reads[key] for key in rollouts] == [1] * keep + [2] * (len(SIZES) - keep)
    assert [memory.reads[key] for key in scores] == [1] * len(SIZES)


def swapped(manifest: ScoreManifest, one: int, other: int) -> ScoreManifest:
    units = list(manifest.units)
    names = [unit.unit for unit in units]
    units[one], units[other] = units[other], units[one]
    pairs = zip(names, units, strict=True)
    renamed = tuple(UnitShard(unit=name, shard=unit.shard) for name, unit in pairs)
    return manifest.model_copy(update={"units": renamed})


def test_scores_of_another_unit_are_named(memory: Storage) -> None:
    stored = store(memory)
    manifest = swapped(stored.manifests["main"], 0, 2)
    data = RoundData(memory, stored.rollout, {"main": manifest}, keep=4)
    with pytest.raises(DataError) as caught:
        data.batch(np.array([0]))
    assert memory.url(manifest.units[0].shard.key) in str(caught.value)
    assert "does not score the sequences of its rollout shard" in str(caught.value)
    data.batch(np.array([SIZES[0]]))


def test_rows_in_another_order_are_refused(memory: Storage) -> None:
    stored = store(memory)
    turned = [table.take(list(range(table.num_rows))[::-1]) for table in stored.scores["main"]]
    manifests = {"main": store_scores(memory, turned, make_scorer())}
    data = RoundData(memory, stored.rollout, manifests, keep=4)
    with pytest.raises(DataError, match="row by row"):
        data.batch(np.array([0]))


def test_scores_with_the_right_digests_and_other_lengths_are_refused(memory: Storage) -> None:
    stored = store(memory)
    table = stored.scores["main"][0]
    lists = {
        name: table.column(name).to_pylist() for name in table.column_names if "digest" not in name
    }
    cut = {
        name: [[*values[0], *values[0][: K if "topk" in name else 1]], *values[1:]]
        if values[0] is not None
        else values
        for name, values in lists.items()
    }
    digests = table.column("sequence_digest").to_pylist()
    wrong = pa.table({"sequence_digest": digests, **cut}, schema=table.schema)
    manifests = {"main": store_scores(memory, [wrong], make_scorer())}
    data = RoundData(memory, stored.rollout, manifests, keep=4)
    with pytest.raises(DataError, match="another number of scored tokens"):
        data.batch(np.array([0]))


def test_a_teacher_without_scores_is_named(memory: Storage) -> None:
    stored = store(memory, ("main", "second"))
    manifests = {"main": stored.manifests["main"]}
    data = RoundData(memory, stored.rollout, manifests, keep=4)
    missing = sum(
        len(row["response_ids"])
        for row in reference_rows(stored)
        if row["teacher"] == "second" and row["unit"] == 0
    )
    assert missing
    with pytest.raises(DataError, match=f"unit u00000: {missing} tokens have no teacher's scores"):
        data.batch(np.array([0]))


def test_scores_of_another_scorer_are_refused(memory: Storage) -> None:
    stored = store(memory)
    foreign = store_scores(memory, stored.scores["main"], make_scorer("foreign"))
    claimed = foreign.model_copy(update={"scorer": stored.manifests["main"].scorer})
    data = RoundData(memory, stored.rollout, {"main": claimed}, keep=4)
    with pytest.raises(IdentityError, match="holds scores of scorer"):
        data.batch(np.array([0]))


def with_unit(memory: Storage, **fields: Any) -> tuple[Stored, RolloutManifest, str]:
    """Return a round 1 with a further unit of another policy, and the name of its shard."""
    stored = store(memory)
    other = store_rollout(memory, [rollout_table(3, policy="policy-b", **fields)]).units[0]
    units = (*stored.rollout.units, other)
    rollout = store_rollout(memory, [], round_index=1).model_copy(update={"units": units})
    return stored, rollout, memory.url(other.shard.key)


@pytest.mark.parametrize("keep", [0, 4])
def test_a_shard_of_another_policy_in_this_round_is_refused(memory: Storage, keep: int) -> None:
    stored, rollout, where = with_unit(memory, rounds=(1,))
    with pytest.raises(IdentityError) as caught:
        RoundData(memory, rollout, stored.manifests, keep=keep).read_lengths(oldest_round=0)
    assert where in str(caught.value)
    assert "policy-b" in str(caught.value) and "policy-a" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4])
def test_a_shard_of_a_round_to_come_is_refused(memory: Storage, keep: int) -> None:
    stored, rollout, where = with_unit(memory, rounds=(2,))
    with pytest.raises(IdentityError, match=f"{where} was sampled by round 2"):
        RoundData(memory, rollout, stored.manifests, keep=keep).read_lengths(oldest_round=0)


def test_rows_of_an_older_round_may_be_of_an_older_policy(memory: Storage) -> None:
    stored, rollout, _ = with_unit(memory, rounds=(0,))
    data = RoundData(memory, rollout, stored.manifests, keep=4)
    found = data.read_lengths(oldest_round=1)
    assert found.unit_rows_U.tolist() == [*SIZES, 3] and not found.fresh_R.any()


@pytest.mark.parametrize("kind", ["rollout", "scores"])
def test_a_corrupt_shard_is_named(memory: Storage, kind: str) -> None:
    stored = store(memory)
    units = stored.rollout.units if kind == "rollout" else stored.manifests["main"].units
    key = units[2].shard.key
    data = bytearray(memory.get(key) or b"")
    data[len(data) // 2] ^= 1
    memory.put(key, bytes(data))
    with pytest.raises(DataError, match=f"{key} is corrupt"):
        stored.open(memory).batch(np.array([sum(SIZES) - SIZES[3] - 1]))
    if kind == "rollout":
        with pytest.raises(DataError, match=f"{key} is corrupt"):
            stored.open(memory, keep=1).read_lengths(oldest_round=0)
