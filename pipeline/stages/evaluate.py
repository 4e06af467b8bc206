"""The eval stage: samples on held-out prompts, graded by a reward.

A round's evaluation is of the checkpoint that the round trained; the baseline is of the student as
it came and of the teachers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.admission.gate import begin
from pipeline.admission.starts import response_limit
from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.engine import Sampling
from pipeline.engines.opening import require_engine
from pipeline.engines.vllm.slot import EngineSlot, Weights
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import model_tokenizer, vocabulary_size
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.rewards.graders import Grade, Response
from pipeline.rewards.libraries.judging import open_evaluator
from pipeline.rewards.location import Grader, find_grader
from pipeline.runs.figures import Accuracy, EvalFigures
from pipeline.runs.grades.intervals import accuracy_interval
from pipeline.runs.grades.passing import pass_at
from pipeline.runs.plan import cut_units
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, check_run
from pipeline.runs.units import Worker
from pipeline.shards.rollouts import read_rollout
from pipeline.stages.sampler import (
    lazy_engine,
    stop_strings,
    stop_tokens,
    student_weights,
)
from pipeline.stages.samples import SampleJob, SampleStage, run_sampling
from pipeline.stages.subjects import Subject, student_tokenizer, teacher_weights
from pipeline.store.records import create_record
from schemas.columns import list_rows
from schemas.config.evaluation import EvalSection
from schemas.errors import ConfigError, DataError
from schemas.fingerprint import fingerprint
from schemas.keys import manifest_key
from schemas.records.runs import EvalManifest
from schemas.records.shards import UnitShard
from schemas.records.training import CheckpointManifest

PROMPTS_PER_UNIT = 512


def _manifest(run: Run, subject: Subject) -> EvalManifest | None:
    if subject.round_index is None:
        return run.baseline(subject.label)
    return run.evaluation(subject.round_index)


@keeps_failure("eval")
def run_eval(
    run: Run,
    subject: Subject,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None = None,
) -> StageResult:
    """Sample and grade what an evaluation still lacks; write its manifest when nothing does.

    Args:
        run: the run.
        subject: the model to grade.
        worker: which units are ours.
        progress: told of each unit.
        slot: where the student's engine is kept between stages, if it is.

    Raises:
        ConfigError: the configuration has no [eval], or its prompts or reward cannot be used.
    """
    check_run(run)
    section = run.config.eval
    if section is None:
        raise ConfigError("the configuration has no [eval] section: add one with a reward")
    manifest = _manifest(run, subject)
    if manifest is not None:
        return _result(run, subject, manifest, computed=0, start_s=0.0)
    require_engine(section.engine, section.server.urls)
    own = slot if subject.teacher is None else None
    grader = find_grader(section, run.place)
    if subject.round_index is not None:
        _policy(run, subject)  # a round that is not trained begins no run
    begin(run, stage="eval", note=progress.note)
    with open_evaluator(grader, timeout_s=section.grader_timeout_s) as grade:
        grading = _Grading(section, grader, grade)
        return _grade(run, subject, grading, worker=worker, progress=progress, slot=own)


@dataclass(frozen=True)
class _Grading:
    """How responses are graded."""

    section: EvalSection
    grader: Grader
    grade: Grade

    def words(self) -> list[Any]:
        """Return what identifies the grades."""
        section = self.section
        return [section.reward, section.pattern, section.require_stop, *self.grader.identity]


def _grade(
    run: Run,
    subject: Subject,
    grading: _Grading,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None,
) -> StageResult:
    section = grading.section
    with _weights(run, subject) as weights:
        source, policy_version = weights.source, weights.version
        tokenizer = model_tokenizer(source)
        reader = tokenizer
        if subject.teacher is not None:
            reader = student_tokenizer(run, subject.teacher, tokenizer)
        prompts = prepare_prompts(run, "eval", reader)
        table = read_prompts(run.storage, prompts).slice(0, section.max_prompts)
        job = SampleJob(
            label=f"eval {subject.label}",
            round_index=-1 if subject.round_index is None else subject.round_index,
            policy_version=policy_version,
            seed=run.config.run.seed,
            default_teacher=run.config.default_teacher,
            sampling=_sampling(run, section, tokenizer, source),
            prompts=table,
        )
        rows = np.arange(table.num_rows)
        units = cut_units(
            rows,
            np.zeros_like(rows),
            samples_per_prompt=section.samples_per_prompt,
            prompts_per_unit=PROMPTS_PER_UNIT,
        )
        digest = fingerprint(
            {
                "policy_version": policy_version,
                "prompts": prompts.fingerprint,
                "sampling": job.sampling.words(),
                "reward": grading.words(),
            }
        )
        finish = partial(_graded, grading, tokenizer)
        stage = SampleStage(run.storage, subject.folder, job, units, digest, tokenizer, finish)
        last = subject.teacher is not None
        with lazy_engine(run, section, weights, slot=slot, last=last, progress=progress) as engine:
            shards, computed = run_sampling(stage, engine, worker=worker, progress=progress)
    manifest = None
    if shards is not None:
        manifest = _summary(run, subject, shards, digest, policy_version)
        create_record(run.storage, manifest_key(subject.folder), manifest)
    return _result(run, subject, manifest, computed=computed, start_s=engine.start_s)


def _graded(grading: _Grading, tokenizer: Any, table: pa.Table) -> pa.Table:
    """Return a sampled table with its rewards; what did not stop is not graded where it has to."""
    texts = tokenizer.batch_decode(list_rows(table, "response_ids"), skip_special_tokens=True)
    names = ("prompt_id", "reference", "metadata")
    columns = [table.column(name).to_pylist() for name in names]
    rewards = np.zeros(table.num_rows)
    asked = np.arange(table.num_rows)
    if grading.section.require_stop:
        asked = np.flatnonzero(np.array(table.column("finish_reason").to_pylist()) == "stop")
    prompts, references, metadata = columns
    rewards[asked] = grading.grade(
        [Response(prompts[i], texts[i], references[i], metadata[i]) for i in asked.tolist()]
    )
    index = table.schema.get_field_index("reward")
    return table.set_column(index, "reward", pa.array(rewards.astype(np.float32)))


@contextmanager
def _weights(run: Run, subject: Subject) -> Iterator[Weights]:
    """Give where a subject's model is, and which weights it has."""
    if subject.teacher is not None:
        yield teacher_weights(run, subject.teacher)
        return
    policy = _policy(run, subject)
    with opened_model(run, policy) as source:
        yield student_weights(run, policy, source)


def _policy(run: Run, subject: Subject) -> CheckpointManifest:
    """Return the checkpoint of a student; the first call imports it."""
    return policy_of_round(run, 0 if subject.round_index is None else subject.round_index + 1)


def _sampling(run: Run, section: EvalSection, tokenizer: Any, source: ModelSource) -> Sampling:
    rollout = run.config.rollout
    return Sampling(
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_new_tokens=response_limit(run, section),
        stop_token_ids=stop_tokens(rollout.stop_token_ids, tokenizer, source),
        vocab_size=vocabulary_size(tokenizer),
        stop_strings=stop_strings(run, tokenizer),
    )


def _summary(
    run: Run, subject: Subject, shards: tuple[UnitShard, ...], digest: str, policy_version: str
) -> EvalManifest:
    tables = [read_rollout(run.storage, unit.shard) for unit in shards]
    table = pa.concat_tables(tables)
    rewards = table.column("reward").to_numpy().astype(np.float64)
    if not np.isfinite(rewards).all():
        raise DataError(
            f"{subject.folder}: {int((~np.isfinite(rewards)).sum())} stored rewards are missing or "
            "no finite numbers, as an older opd let a grader give; delete the commits of this "
            "evaluation and run the same command again"
        )
    samples = run.config.eval.samples_per_prompt if run.config.eval else 1
    grades_PN = rewards.reshape(-1, samples)
    by_prompt = grades_PN.mean(1)
    spread = float(by_prompt.std(ddof=1)) if len(by_prompt) > 1 else 0.0
    stopped = [reason == "stop" for reason in table.column("finish_reason").to_pylist()]
    return EvalManifest(
        run=run.name,
        round=subject.round_index,
        subject=subject.label,
        policy_version=policy_version,
        fingerprint=digest,
        units=shards,
        rows=table.num_rows,
        tokens=sum(unit.shard.tokens for unit in shards),
        accuracy=float(rewards.mean()),
        standard_error=spread / math.sqrt(len(by_prompt)),
        stopped=float(np.mean(stopped)),
        samples=samples,
        pass_at=pass_at(grades_PN),
    )


def _accuracy(run: Run, manifest: EvalManifest) -> Accuracy:
    # an older opd did not write how many samples there are; they are fixed with the run
    samples = run.config.eval.samples_per_prompt if run.config.eval else manifest.samples
    found = accuracy_interval(manifest, samples=samples)
    return Accuracy(
        accuracy=manifest.accuracy,
        standard_error=manifest.standard_error,
        accuracy_low=found.low,
        accuracy_high=found.high,
        samples=samples,
        pass_at=dict(manifest.pass_at),
    )


def _result(
    run: Run, subject: Subject, manifest: EvalManifest | None, *, computed: int, start_s: float
) -> StageResult:
    found = None if manifest is None else _accuracy(run, manifest)
    return StageResult(
        stage="eval",
        run=run.name,
        round=subject.round_index,
        units=computed,
        rows=manifest.rows if manifest else 0,
        tokens=manifest.tokens if manifest else 0,
        manifest=run.storage.url(manifest_key(subject.folder)) if manifest else None,
        engine_start_s=start_s,
        figures=EvalFigures(subject.label, found),
    )
