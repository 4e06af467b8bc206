"""Sampling of a unit: every row of its table against the engine's own sample."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.quickstart.addition import VOCABULARY, make_tokenizer
from pipeline.runs.plan import Unit, cut_units, sample_seeds
from pipeline.runs.units import Worker
from pipeline.scores.inclusion import inclusions
from pipeline.scores.scores import Scores
from pipeline.scores.threshold import threshold_sample
from pipeline.shards.parquet import read_table
from pipeline.shards.rollouts import OWN_SAMPLE, read_rollout, write_rollout
from pipeline.stages.samples import (
    OWN_IDS,
    SampleJob,
    SampleStage,
    check_fits,
    run_sampling,
    sample_unit,
)
from pipeline.store.storage import Storage
from schemas.columns import Ids, flat_values
from schemas.errors import CapacityError, ConfigError, DataError
from schemas.fingerprint import sequence_digest
from schemas.ragged import padded
from schemas.tables import PROMPTS, check_rollout
from tests.support.countedwork import Recorder

V, LIMIT = len(VOCABULARY), 6
PROMPT_IDS = [[4, 5, 6], [7], [8, 9], [3, 3, 3, 3], [5, 4]]
SAMPLING = Sampling(1.0, 1.0, 0, LIMIT, (2,))
TOKENIZER: Any = make_tokenizer()


def prompt_table() -> pa.Table:
    rows = [
        {
            "prompt_id": f"p{row}",
            "prompt_ids": ids,
            "text": None,
            "reference": str(row) if row else None,
            "teacher": "math" if row == 2 else None,
            "weight": 1 + row / 2,
            "metadata": None,
        }
        for row, ids in enumerate(PROMPT_IDS)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


JOB = SampleJob(
    label="rollout",
    round_index=3,
    policy_version="policy",
    seed=7,
    default_teacher="main",
    sampling=SAMPLING,
    prompts=prompt_table(),
)


def drawn(seed: int, candidates: int, places: int = 0) -> Sample:
    """Return the sample of a seed."""
    random = np.random.default_rng(seed)
    tokens = int(random.integers(1, LIMIT + 1))
    shape = (tokens, candidates)
    own = candidates > 0
    return Sample(
        ids=random.integers(3, V, tokens).astype(np.int32),
        logprobs=-random.exponential(1, tokens).astype(np.float32),
        finish_reason="length" if tokens == LIMIT else "stop",
        candidate_ids=random.integers(0, V, shape).astype(np.int32) if own else None,
        candidate_logprobs=-random.exponential(1, shape).astype(np.float32) if own else None,
        **own_sample_of(random, tokens, places),
    )


def own_sample_of(random: np.random.Generator, tokens: int, places: int) -> dict[str, Any]:
    """Return the arrays of a student's own sample, where there are places for one."""
    if not places:
        return {}
    ids = random.permuted(np.tile(np.arange(V, dtype=np.int32), (tokens, 1)), axis=1)
    logprobs = -random.exponential(1, (tokens, places)).astype(np.float32)
    return {"sample_ids": ids[:, :places], "sample_logprobs": logprobs}


class Seeded:
    """An engine whose samples are a function of their seeds."""

    name, version, vocab_size, context_length = "seeded", "1", V, 10

    def __init__(self, *, room: int = 99) -> None:
        """Begin with a memory for so many prompts at once."""
        self.room, self.asked = room, list[int]()

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return the samples of the seeds."""
        self.asked.append(len(prompts))
        if self.room < len(prompts):
            raise CapacityError("no room")
        return [drawn(seed, sampling.candidates, sampling.sample) for seed in seeds]

    def score(self, *args: Any, **kwargs: Any) -> Scores:
        """Refuse: nothing is scored here."""
        raise AssertionError("sampling asked for scores")

    def shrink(self) -> bool:
        """Make room."""
        self.room *= 2
        return True

    def close(self) -> None:
        """Hold nothing."""


def units_of(rows: Sequence[int], *, samples: int = 2, per_unit: int = 2) -> list[Unit]:
    picked = np.array(rows)
    epochs = np.arange(len(rows)) // 3
    return cut_units(picked, epochs, samples_per_prompt=samples, prompts_per_unit=per_unit)


@pytest.mark.parametrize(("candidates", "places"), [(0, 0), (2, 0), (2, 3), (0, 3)])
def test_every_row_is_the_sample_of_its_prompt_and_seed(candidates: int, places: int) -> None:
    job = replace(JOB, sampling=replace(SAMPLING, candidates=candidates, sample=places))
    (unit,) = units_of([4, 2, 0, 2], per_unit=9)
    table = sample_unit(job, unit, Seeded(), TOKENIZER)
    check_rollout(table, where="x")
    keys = [f"p{row}" for row in unit.rows]
    seeds = sample_seeds(unit, keys, seed=7, round_index=3)
    found = table.to_pylist()
    assert len(found) == len(set(seeds)) == 8
    prompts = JOB.prompts.to_pylist()
    for place, row in enumerate(found):
        prompt, sample = prompts[unit.rows[place]], drawn(seeds[place], candidates, places)
        assert row["seed"] == seeds[place]
        for name in ("prompt_id", "prompt_ids", "weight", "reference"):
            assert row[name] == prompt[name]
        assert row["response_ids"] == sample.ids.tolist()
        assert row["rollout_student_logprobs"] == sample.logprobs.tolist()
        assert row["response_mask"] == [True] * len(sample.ids)
        assert row["finish_reason"] == sample.finish_reason
        assert row["sequence_digest"] == sequence_digest(prompt["prompt_ids"], sample.ids)
        assert row["text"] == TOKENIZER.decode(sample.ids.tolist())
        assert row["teacher"] == (prompt["teacher"] or "main")
        assert (row["round"], row["policy_version"]) == (3, "policy")
        for column, attribute in OWN_IDS.items():
            values = getattr(sample, attribute)
            assert row[column] == (None if values is None else values.reshape(-1).tolist())
    names = [row["sequence_id"] for row in found]
    assert len(set(names)) == 8 and names[0] == "3/p4/0/0" and names[-1] == "3/p2/1/1"


class Flat(Seeded):
    """An engine whose own samples are of flat and of peaked distributions."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return the samples of the seeds; those of equal prompts have equal ids."""
        found = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            random = np.random.default_rng(seed)
            ids = np.full(LIMIT, prompt[0], np.int32)
            sharp = 10.0 ** random.uniform(-1.7, 1, LIMIT)
            p_TV = np.stack([random.dirichlet(np.full(V, alpha)) for alpha in sharp])
            own_TN, _ = threshold_sample(
                torch.from_numpy(p_TV), torch.from_numpy(random.random(LIMIT)), sampling.sample
            )
            mass = np.take_along_axis(p_TV, np.maximum(own_TN.numpy(), 0), axis=1)
            logprobs = np.log(np.where(own_TN < 0, 1e-30, mass)).astype(np.float32)
            own = {"sample_ids": own_TN.int().numpy(), "sample_logprobs": logprobs}
            found.append(Sample(ids, np.full(LIMIT, -1.0, np.float32), "length", **own))
        return found


def test_the_ids_of_a_unit_go_to_its_flat_positions() -> None:
    sampling = replace(SAMPLING, sample=12, sample_mean=6)
    (unit,) = units_of([4, 2, 0, 1], per_unit=9)
    table = sample_unit(replace(JOB, sampling=sampling), unit, Flat(), TOKENIZER)
    write_rollout(table, {}, where="x")  # which checks it
    counts = flat_values(table, "student_sample_count")
    assert 5 * len(counts) <= counts.sum() <= 6 * len(counts)
    assert counts.min() < 4 and counts.max() > 8
    nats_TN = padded(flat_values(table, "student_sample_logprobs"), counts, fill=-np.inf)
    there_TN = nats_TN > -np.inf
    chances_TN = np.where(there_TN, inclusions(nats_TN, np.zeros(len(counts))), 1.0)
    whole = np.exp(nats_TN) / chances_TN
    np.testing.assert_allclose(whole.sum(axis=1), 1.0, atol=1e-5)
    rows = dict[str, Any]()
    for row in table.to_pylist():  # a teacher scores equal sequences once
        own = rows.setdefault(row["sequence_digest"], row)
        assert {name: row[name] for name in OWN_SAMPLE} == {name: own[name] for name in OWN_SAMPLE}
    assert len(rows) < table.num_rows


@pytest.mark.parametrize(("longest", "fits"), [(4, True), (5, False)])
def test_the_longest_prompt_and_its_response_must_fit(longest: int, fits: bool) -> None:
    prompts = JOB.prompts.set_column(
        1, PROMPTS.field("prompt_ids"), pa.array([[3]] * 4 + [[3] * longest], pa.list_(pa.int32()))
    )
    job = replace(JOB, prompts=prompts)
    check_fits(Seeded(), job, np.array([0, 1]))  # the long one is not of this unit
    if fits:
        check_fits(Seeded(), job, np.array([0, 4]))
    else:
        with pytest.raises(ConfigError, match="5 tokens and max_new_tokens = 6 make 11.* holds 10"):
            check_fits(Seeded(), job, np.array([0, 4]))


def test_an_id_that_the_model_does_not_have_is_refused() -> None:
    small = Seeded()
    small.vocab_size = 9
    with pytest.raises(ConfigError, match="holds id 9, but the student's vocabulary ends at 8"):
        check_fits(small, JOB, np.array([2]))
    small.vocab_size = 10
    check_fits(small, JOB, np.array([2]))


def run(
    storage: Storage, engine: LazyEngine, *, worker: Worker | None = None, finish: Any = None
) -> Any:
    stage = SampleStage(
        storage,
        "stage",
        JOB,
        units_of([0, 1, 2, 3, 4]),
        fingerprint="f",
        tokenizer=TOKENIZER,
        finish=finish or (lambda table: table),
    )
    return run_sampling(stage, engine, worker=worker or Worker(), progress=Recorder())


def test_units_are_sampled_once_by_all_workers_together(memory: Storage) -> None:
    with LazyEngine(lambda: Seeded(room=2), print) as engine:  # four rows at once are too many
        assert run(memory, engine, worker=Worker(1, 2)) == (None, 1)
        done, computed = run(memory, engine)
    assert computed == 2 and [unit.unit for unit in done] == ["u00000", "u00001", "u00002"]
    with LazyEngine(lambda: pytest.fail("an engine was opened for nothing"), print) as none:
        assert run(memory, none) == (done, 0)
    for unit, expected in zip(done, units_of([0, 1, 2, 3, 4]), strict=True):
        metadata = read_table(memory.read_shard(unit.shard), where="x")[1]
        table = read_rollout(memory, unit.shard)
        assert table.equals(sample_unit(JOB, expected, Seeded(), TOKENIZER))
        assert metadata["sampling"] == SAMPLING.words() | {"stop_token_ids": [2]}
        assert (metadata["engine"], metadata["policy_version"]) == ("seeded", "policy")
        tokens = sum(len(ids) for ids in table.column("response_ids").to_pylist())
        assert (unit.shard.rows, unit.shard.tokens) == (table.num_rows, tokens)


def test_the_last_change_to_a_table_is_checked_before_it_is_stored(memory: Storage) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        mask = pa.array([[]] * table.num_rows, table.schema.field("response_mask").type)
        return table.set_column(
            table.column_names.index("response_mask"), table.schema.field("response_mask"), mask
        )

    with LazyEngine(Seeded, print) as engine, pytest.raises(DataError, match="stage u0000"):
        run(memory, engine, finish=spoil)
    assert memory.names("rollouts") == memory.names("stage/commits") == set()


class Repeating(Seeded):
    """An engine that draws two sequences only, but whose own samples differ from row to row."""

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return samples of few ids."""
        found = super().generate(prompts, seeds, sampling)
        for n, (sample, seed) in enumerate(zip(found, seeds, strict=True)):
            few = drawn(int(seed) % 2, 0)
            own = own_sample_of(np.random.default_rng(n), len(few.ids), 3)
            found[n] = Sample(few.ids, few.logprobs, sample.finish_reason, **own)
        return found


def test_equal_sequences_of_a_unit_have_the_same_own_sample() -> None:
    job = replace(JOB, sampling=replace(SAMPLING, sample=3))
    (unit,) = units_of([4, 2, 0, 2], per_unit=9, samples=4)
    rows = sample_unit(job, unit, Repeating(), TOKENIZER).to_pylist()
    own: dict[str, set[Any]] = {}
    for row in rows:
        own.setdefault(row["sequence_digest"], set()).add(tuple(row["student_sample_ids"]))
    assert len(own) < len(rows)
    assert {len(samples) for samples in own.values()} == {1}
    assert len({samples.pop() for samples in own.values()}) == len(own)
