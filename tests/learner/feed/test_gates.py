"""How much each row distils, against a reading of what is known of it, row by row, by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.learner.feed.advantages import RewardInputs
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.gates import GateInputs, TeacherAnswers
from pipeline.store.storage import Storage
from schemas.config.rewards.gates import LossGate
from schemas.records.shards import UnitShard
from tests.learner.feed.test_data import SIZES, Stored, store
from tests.learner.test_rewards import given, store_rewards
from tests.support.runs import Cli
from tests.support.tiny import write_run
from tests.support.tinytables import store_rollout

TEACHERS = ("main", "second")
GATES = [
    LossGate(student="wrong", unknown=0.25),
    LossGate(student="right", unknown=0.0),
    LossGate(pass_rate="hard", unknown=0.5),
    LossGate(pass_rate="middle"),
    LossGate(pass_rate="easy", student="wrong", right=0.5),
    LossGate(teacher="samples", unknown=0.75),
    LossGate(teacher="eval", teacher_rate=1.0, unknown=0.0),
    LossGate(teacher="samples", student="wrong", pass_rate="hard", unknown=0.5),
]


def few_prompts(stored: Stored) -> Stored:
    """Return tables whose rows share a few prompts."""
    tables, first = [], 0
    for table in stored.tables:
        names = pa.array([f"p{(first + i) % 5}" for i in range(table.num_rows)])
        first += table.num_rows
        place = table.schema.get_field_index("prompt_id")
        tables.append(table.set_column(place, table.schema.field("prompt_id"), names))
    return Stored(tables, stored.scores, stored.rollout, stored.manifests)


def answered(storage: Storage, stored: Stored, kind: str) -> tuple[TeacherAnswers, dict[str, Any]]:
    """Store answers of a teacher to some of the prompts; return them, and rewards by prompt."""
    table = stored.tables[2]
    table = table.filter(pa.array([name != "p4" for name in table["prompt_id"].to_pylist()]))
    rewards = [None if i == 0 else float(i % 2) for i in range(table.num_rows)]
    by_prompt: dict[str, Any] = {}
    for name, reward in zip(table["prompt_id"].to_pylist(), rewards, strict=True):
        by_prompt.setdefault(name, []).append(reward)
    if kind == "eval":
        place = table.schema.get_field_index("reward")
        table = table.set_column(place, "reward", pa.array(rewards, pa.float32()))
    manifest = store_rollout(storage, [table])
    units: tuple[UnitShard, ...] = manifest.units
    if kind == "samples":
        only = Stored([table], {}, manifest, {})
        units = store_rewards(storage, only, [rewards]).units
    return TeacherAnswers("answers", units), by_prompt


def by_hand(
    gate: LossGate, rows: list[dict[str, Any]], answers: dict[str, dict[str, Any]]
) -> list[float]:
    """Return the weight of each row."""
    weights = []
    for row in rows:
        weight, reward = 1.0, row["own"]
        if gate.student != "any" and reward is None:
            weight *= gate.unknown
        elif gate.student != "any":
            weight *= (reward >= gate.right) == (gate.student == "right")
        if gate.pass_rate != "any":
            group = [r["own"] for r in rows if r["prompt_id"] == row["prompt_id"]]
            known = [reward >= gate.right for reward in group if reward is not None]
            p = sum(known) / len(known) if known else None
            if p is None:
                weight *= gate.unknown
            else:
                weight *= {"hard": 1 - p, "easy": p, "middle": 4 * p * (1 - p)}[gate.pass_rate]
        if gate.teacher != "any":
            given = answers.get(row["teacher"], {}).get(row["prompt_id"], [])
            right = [reward >= gate.right for reward in given if reward is not None]
            share = sum(right) / len(right) if right else None
            weight *= gate.unknown if share is None else share >= gate.teacher_rate
        weights.append(float(weight))
    return weights


@pytest.mark.parametrize("gate", GATES, ids=lambda g: f"{g.teacher}-{g.student}-{g.pass_rate}")
def test_each_row_distils_as_far_as_what_is_known_of_it_says(
    memory: Storage, gate: LossGate
) -> None:
    stored = few_prompts(store(memory, TEACHERS))
    rollout = store_rollout(memory, stored.tables)
    stored = Stored(stored.tables, stored.scores, rollout, stored.manifests)
    rewards, answers, known = given(stored), {}, {}
    if gate.teacher != "any":  # nobody knows of the second teacher
        answers["main"], known["main"] = answered(memory, stored, gate.teacher)
    flat = [reward for unit in rewards for reward in unit]
    rows = [row for table in stored.tables for row in table.to_pylist()]
    rows = [{**row, "own": reward} for row, reward in zip(rows, flat, strict=True)]
    expected = np.array(by_hand(gate, rows, known), np.float32)
    assert len(set(expected.tolist())) > 1
    data = RoundData(
        memory,
        rollout,
        stored.manifests,
        keep=1,
        rewards=RewardInputs(store_rewards(memory, stored, rewards), "grpo"),
        gate=GateInputs(gate, answers),
    )
    lengths = data.read_lengths(oldest_round=0)
    assert lengths.gate_R is not None
    np.testing.assert_allclose(lengths.gate_R, expected, rtol=1e-6)
    order = np.random.default_rng(0).permutation(sum(SIZES))
    ends = np.cumsum(SIZES)
    for some in np.array_split(order, 4):
        units = np.searchsorted(ends, some, side="right")
        grouped = some[np.argsort(units, kind="stable")]  # rows come grouped by unit
        np.testing.assert_array_equal(data.batch(some).gate_B, lengths.gate_R[grouped])
    usable = expected[lengths.usable_R]
    assert lengths.gated["none"] == int((usable == 0).sum())
    assert sum(lengths.gated.values()) == len(usable)


@pytest.mark.parametrize(
    ("gate", "factors"),
    [
        (LossGate(), [1, 1, 1, 1, 1]),
        (LossGate(warmup_steps=4), [0.25, 0.5, 0.75, 1, 1]),
        (LossGate(anneal_from=1, anneal_steps=2), [1, 1, 0.5, 0, 0]),
        (LossGate(anneal_steps=4, anneal_to=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (LossGate(warmup_steps=2, anneal_steps=2, anneal_to=0.5), [0.5, 0.75, 0.5, 0.5, 0.5]),
    ],
)
def test_distillation_warms_up_and_shrinks_step_by_step(gate: LossGate, factors: Any) -> None:
    assert [gate.factor(step) for step in range(5)] == pytest.approx(factors)


def test_a_run_tells_what_its_gates_let_distil(tmp_path: Path, cli: Cli) -> None:
    changes: dict[str, object] = {
        "run.rounds": 1,
        "prompts.eval": "prompts.jsonl",  # so that the teacher has answered what is trained on
        "reward.grader": "grader.py:grade",
        "reward.unfinished": "grade",
        "loss.gate.student": "right",
        "loss.gate.teacher": "eval",
        "loss.gate.unknown": 0.0,
        "loss.gate.warmup_steps": 4,
        "eval.reward": "grader.py:grade",
    }
    (tmp_path / "grader.py").write_text("def grade(a, b, c):\n    return int(b) % 2\n")
    config = write_run(tmp_path, changes=changes)
    refused = cli("train", "-c", config, "--round", "0")
    for stage in ("rollout", "score", "grade"):
        cli.ok(stage, "-c", config, "--round", "0")
    refused = cli("train", "-c", config, "--round", "0")
    assert refused.code == 2 and "opd eval --baseline" in refused.stderr
    cli.ok("eval", "-c", config, "--baseline")
    outcome = cli("train", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "loss.gate: rows that distil: " in outcome.stderr
    (metrics,) = (tmp_path / "store" / "runs" / "tiny" / "metrics").glob("*.parquet")
    steps = pq.read_table(metrics).to_pylist()
    assert 0 < steps[0]["gate_shut"] < 1
    for step, factor in zip(steps, (0.25, 0.5), strict=True):
        assert step["distilled"] == pytest.approx(factor * (1 - step["gate_shut"]), rel=1e-5)
