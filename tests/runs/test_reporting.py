"""Step metrics come back as they went in; times add up over the calls of a stage."""

import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learner.metrics import Step, steps_shard
from pipeline.runs.reporting import StageResult, record_time, stage_seconds
from pipeline.runs.run import Run
from pipeline.shards.parquet import read_table, write_table
from pipeline.store.place import ConfigPlace
from pipeline.store.storage import Storage
from schemas.config.file import parse_config
from schemas.errors import DataError
from schemas.keys import time_key
from schemas.records.shards import Shard
from tests.support.minimal import TEXT

RUN = Run(
    parse_config(TEXT, where="run.toml"), Storage("memory://test-metrics"), ConfigPlace("/base")
)
VALUES = st.floats(-100, 100)
STEPS = st.lists(st.tuples(VALUES, VALUES | st.none(), st.integers(1, 999)), min_size=1, max_size=9)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    return replace(RUN, storage=Storage(f"memory://{abs(hash(request.node.nodeid))}"))


def read(shard: Shard) -> tuple[pa.Table, dict[str, Any]]:
    return read_table(RUN.storage.read_shard(shard), where="x")


@given(STEPS, st.integers(0, 10**6))
def test_steps_come_back_numbered_through_the_run(
    rows: list[tuple[float, float | None, int]], first_step: int
) -> None:
    steps: list[Step] = [{"loss": a, "grad_norm": b, "tokens": float(n)} for a, b, n in rows]
    shard, _ = steps_shard(RUN, 3, first_step, steps)
    table, metadata = read(shard)
    assert table.to_pylist() == [{"step": first_step + i, **step} for i, step in enumerate(steps)]
    assert (metadata["run"], metadata["round"]) == ("demo", 3)
    assert shard.rows == len(steps) and shard.key.startswith("runs/demo/metrics/")


@given(STEPS)
def test_means_are_weighted_by_tokens_and_absent_values_have_none(
    rows: list[tuple[float, float | None, int]],
) -> None:
    _, means = steps_shard(
        RUN, 0, 0, [{"loss": a, "grad_norm": b, "tokens": float(n)} for a, b, n in rows]
    )
    total = sum(n for _, _, n in rows)
    expected = {"loss": sum(a * n for a, _, n in rows) / total}
    norms = [(b, n) for _, b, n in rows if b is not None]
    if len(norms) == len(rows):
        expected["grad_norm"] = sum(b * n for b, n in norms) / total
    assert means == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_same_steps_make_the_same_shard(run: Run) -> None:
    steps: list[Step] = [{"loss": 1.0, "tokens": 2.0}]
    assert steps_shard(run, 0, 0, steps) == steps_shard(run, 0, 0, steps)
    others = [steps_shard(run, 1, 0, steps), steps_shard(run, 0, 1, steps)]
    assert all(other[0].key != steps_shard(run, 0, 0, steps)[0].key for other in others)


def result(stage: str, round_index: int | None, units: int = 1) -> StageResult:
    return StageResult(
        stage=stage, run="demo", round=round_index, units=units, rows=1, tokens=1, manifest=None
    )


def test_times_add_up_over_the_calls_of_a_stage_in_one_round(run: Run) -> None:
    for stage, round_index, seconds in (
        ("rollout", 0, 1.0),
        ("rollout", 0, 2.5),
        ("rollout", 0, 2.5),
        ("score", 0, 4.0),
        ("rollout", 1, 8.0),
    ):
        record_time(run, result(stage, round_index), seconds)
    assert stage_seconds(run, 0) == {"rollout": 6.0, "score": 4.0}
    assert stage_seconds(run, 1) == {"rollout": 8.0}
    assert stage_seconds(run, 2) == {}


def test_a_call_that_did_nothing_leaves_no_trace(run: Run) -> None:
    record_time(run, result("rollout", 0, units=0), 1.0)
    record_time(run, result("eval", None), 1.0)
    assert stage_seconds(run, 0) == {}
    assert run.storage.names("runs/demo/metrics/times/0000") == set()


def test_times_that_an_older_opd_wrote_count_too(run: Run) -> None:
    record_time(run, result("score", 0), 1.5)
    row = {"stage": "score", "seconds": 2.0, "units": 1}
    key = time_key(run.name, 0, call="score", random="0a")
    run.storage.put(key, write_table(pa.Table.from_pylist([row]), {}))
    assert stage_seconds(run, 0) == {"score": 3.5}


@pytest.mark.parametrize("row", [{"stage": "rollout"}, {"stage": 1, "seconds": 1.0}])
def test_times_of_another_shape_are_named(run: Run, row: dict[str, Any]) -> None:
    key = time_key(run.name, 0, call="rollout", random="a")
    run.storage.put(key, write_table(pa.Table.from_pylist([row]), {}))
    with pytest.raises(DataError, match=re.escape(key)):
        stage_seconds(run, 0)
