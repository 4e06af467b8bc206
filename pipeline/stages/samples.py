"""Sampling of one unit: prompts in, a rollout table out. Shared by rollout and evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.lazy import LazyEngine
from pipeline.models.stopstrings import check_prompts
from pipeline.runs.plan import Unit, sample_seeds
from pipeline.runs.progress import Progress
from pipeline.runs.units import Worker
from pipeline.scores.thinning import needed_places, thinned
from pipeline.shards.rollouts import OWN_SAMPLE, write_rollout
from pipeline.stages.commits import StageUnits, commit_units
from pipeline.store.commit import content_shard, publish
from pipeline.store.storage import Storage
from schemas.columns import Ids, list_array, list_lengths, list_rows
from schemas.errors import ConfigError
from schemas.fingerprint import sequence_digest
from schemas.keys import ROLLOUTS
from schemas.ragged import row_sums
from schemas.randomness import derived_seed, uniforms
from schemas.records.shards import UnitShard
from schemas.tables import IDS, LOGPROBS, ROLLOUT

OWN_IDS = {
    "student_topk_ids": "candidate_ids",
    "student_topk_logprobs": "candidate_logprobs",
    "student_sample_ids": "sample_ids",
    "student_sample_logprobs": "sample_logprobs",
}
"""Columns of the student's own ids, and where a sample has them."""


@dataclass(frozen=True)
class SampleJob:
    """What all units of one sampling stage share."""

    label: str
    """What progress calls the stage."""
    round_index: int
    policy_version: str
    seed: int
    default_teacher: str
    sampling: Sampling
    prompts: pa.Table
    """Every prompt of the split, in the order of its file."""

    def metadata(self, engine: Engine) -> dict[str, Any]:
        """Return the file metadata of the stage's shards."""
        return {
            "engine": engine.name,
            "engine_version": engine.version,
            "logprobs_mode": "processed",
            "policy_version": self.policy_version,
            "sampling": self.sampling.words(),
        }


@dataclass(frozen=True)
class SampleStage:
    """All units of one sampling stage, and where they go."""

    storage: Storage
    folder: str
    """The stage's folder."""
    job: SampleJob
    units: Sequence[Unit]
    fingerprint: str
    """Digest of the stage's work."""
    tokenizer: Any
    """For the text that people read."""
    finish: Callable[[pa.Table], pa.Table] = lambda table: table
    """Last change to a unit's table before it is stored, such as grading."""

    def sample(self, unit: Unit, engine: LazyEngine) -> int:
        """Sample and commit a unit; return its tokens."""
        opened = engine.get()
        check_fits(opened, self.job, unit.rows)
        table = engine.call(lambda e: sample_unit(self.job, unit, e, self.tokenizer))
        table = self.finish(table)
        where = f"{self.folder} {unit.name}"
        data = write_rollout(table, self.job.metadata(opened), where=where)
        tokens = int(list_lengths(table, "response_ids").sum())
        shard = content_shard(ROLLOUTS, data, rows=table.num_rows, tokens=tokens)
        publish(
            self.storage,
            self.folder,
            unit.name,
            shard=shard,
            data=data,
            fingerprint=self.fingerprint,
        )
        return tokens


def run_sampling(
    stage: SampleStage, engine: LazyEngine, *, worker: Worker, progress: Progress
) -> tuple[tuple[UnitShard, ...] | None, int]:
    """Sample and commit the units that lack a commit.

    Args:
        stage: the units.
        engine: the student, opened when the first unit is missing.
        worker: which units are ours.
        progress: told of each unit.

    Returns:
        The units and their shards, or None while some are missing; and the units computed here.
    """
    names = [unit.name for unit in stage.units]
    units = StageUnits(stage.storage, stage.folder, names, stage.fingerprint, stage.job.label)
    return commit_units(
        units,
        lambda index: stage.sample(stage.units[index], engine),
        worker=worker,
        progress=progress,
    )


def check_fits(engine: Engine, job: SampleJob, rows: Any) -> None:
    """Make sure that the longest prompt and its response fit the model.

    Raises:
        ConfigError: they do not, or a prompt id is outside the model's vocabulary.
    """
    prompts = list_rows(job.prompts.take(pa.array(np.unique(rows))), "prompt_ids")
    longest, highest = max(map(len, prompts)), max(int(p.max()) for p in prompts)
    total = longest + job.sampling.max_new_tokens
    if total > engine.context_length:
        raise ConfigError(
            f"a prompt of {longest} tokens and max_new_tokens = {job.sampling.max_new_tokens} make "
            f"{total}, but the model holds {engine.context_length}: lower prompts.max_tokens or "
            "max_new_tokens"
        )
    if highest >= engine.vocab_size:
        raise ConfigError(
            f"a prompt holds id {highest}, but the student's vocabulary ends at "
            f"{engine.vocab_size - 1}: the prompts were made for another tokenizer"
        )


def sample_unit(job: SampleJob, unit: Unit, engine: Engine, tokenizer: Any) -> pa.Table:
    """Return the rollout table of a unit, one row per sequence, in the order of the unit."""
    rows = job.prompts.take(pa.array(unit.rows))
    prompt_keys = rows.column("prompt_id").to_pylist()
    seeds = sample_seeds(unit, prompt_keys, seed=job.seed, round_index=job.round_index)
    prompts: list[Ids] = list_rows(rows, "prompt_ids")
    if job.sampling.stop_strings:
        check_prompts(tokenizer, prompts)
    samples = engine.generate(prompts, seeds, job.sampling)
    names = [
        f"{job.round_index}/{key}/{epoch}/{index}"
        for key, epoch, index in zip(prompt_keys, unit.epochs, unit.sample_indices, strict=True)
    ]
    digests = [sequence_digest(p, s.ids) for p, s in zip(prompts, samples, strict=True)]
    teachers = rows.column("teacher").fill_null(job.default_teacher)
    columns = {
        **_per_token(samples),
        **_own(samples, digests, job.sampling.sample_mean),
        "sequence_id": names,
        "sequence_digest": digests,
        "prompt_id": rows.column("prompt_id"),
        "sample_index": unit.sample_indices,
        "round": np.full(len(samples), job.round_index),
        "policy_version": [job.policy_version] * len(samples),
        "prompt_ids": rows.column("prompt_ids"),
        "finish_reason": [s.finish_reason for s in samples],
        "seed": seeds,
        "teacher": teachers,
        "weight": rows.column("weight"),
        "reference": rows.column("reference"),
        "metadata": rows.column("metadata"),
        "text": tokenizer.batch_decode([s.ids for s in samples]),
    }
    absent = [None] * len(samples)
    return pa.table({f.name: columns.get(f.name, absent) for f in ROLLOUT}, schema=ROLLOUT)


def _per_token(samples: Sequence[Sample]) -> dict[str, pa.Array]:
    lengths = np.array([len(s.ids) for s in samples])
    ids = np.concatenate([s.ids for s in samples])
    logprobs = np.concatenate([s.logprobs for s in samples])
    own = np.ones(len(ids), dtype=bool)
    return {
        "response_ids": list_array(ids, lengths, IDS),
        "response_mask": list_array(own, lengths, ROLLOUT.field("response_mask").type),
        "rollout_student_logprobs": list_array(logprobs, lengths, LOGPROBS),
    }


def _own(samples: Sequence[Sample], digests: Sequence[str], mean: int) -> dict[str, pa.Array]:
    """Return the columns of the student's own ids; no column where none were recorded.

    Equal sequences get those of the first, for the teacher scores one of them.

    Args:
        samples: of the unit.
        digests: of the sequences.
        mean: ids of its sample that a token keeps on average; 0 for all.
    """
    first = {digest: sample for digest, sample in zip(digests[::-1], samples[::-1], strict=True)}
    lengths = np.array([len(sample.ids) for sample in samples])
    columns = {}
    for column, attribute in OWN_IDS.items():
        parts = [getattr(first[digest], attribute) for digest in digests]
        if parts[0] is not None:
            values = np.concatenate(parts)
            counts = lengths * values.shape[1]
            columns[column] = list_array(values.reshape(-1), counts, ROLLOUT.field(column).type)
    return {**columns, **_thinned(columns, lengths, digests, mean)} if mean else columns


def _thinned(
    columns: Mapping[str, pa.Array], lengths: Any, digests: Sequence[str], mean: int
) -> dict[str, pa.Array]:
    """Return the columns of samples that have as many ids as each token needs.

    The random numbers are those of the sequence, so that equal ones keep the same ids.
    """
    ids_TN, logprobs_TN = (
        columns[name].values.to_numpy().reshape(lengths.sum(), -1) for name in OWN_SAMPLE[:2]
    )
    places_T = needed_places(logprobs_TN, mean)
    seeds = np.array([derived_seed("thinned", digest) for digest in digests])
    numbers = uniforms(seeds, int(lengths.max()))
    uniforms_T = numbers[np.arange(numbers.shape[1]) < lengths[:, None]]
    ids_TN, logprobs_TN = thinned(ids_TN, logprobs_TN, places_T, uniforms_T)
    kept_TN = ids_TN >= 0
    count_T = kept_TN.sum(axis=1)
    found = (ids_TN[kept_TN], logprobs_TN[kept_TN], count_T)
    counts = (row_sums(count_T, lengths), row_sums(count_T, lengths), lengths)
    return {
        name: list_array(values, of_rows, ROLLOUT.field(name).type)
        for name, values, of_rows in zip(OWN_SAMPLE, found, counts, strict=True)
    }
