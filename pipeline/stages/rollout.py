"""The rollout stage: the student of a round, or a teacher, samples responses to its prompts.

Promises: the plan is fixed before the first sample; units are pure functions of it; run again, it
computes what is missing and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.admission.gate import begin
from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.engine import Sampling
from pipeline.engines.opening import require_engine
from pipeline.engines.vllm.slot import EngineSlot, Weights
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import model_tokenizer, stored_tokenizer, vocabulary_size
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.runs.curriculum.planning import Draw, draw_round
from pipeline.runs.curriculum.rounds import round_teacher
from pipeline.runs.figures import SampleFigures
from pipeline.runs.plan import Unit, cut_units
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, check_run
from pipeline.runs.units import Worker
from pipeline.stages.sampler import lazy_engine, stop_strings, stop_tokens, student_weights
from pipeline.stages.samples import SampleJob, SampleStage, run_sampling
from pipeline.stages.subjects import check_teacher, student_tokenizer, teacher_weights
from pipeline.store.records import check_fingerprint, create_record
from schemas.fingerprint import fingerprint
from schemas.keys import ROLLOUT, SAMPLES, manifest_key, plan_key, sample_stage
from schemas.records.runs import PromptsManifest, RolloutManifest, RolloutPlan


@keeps_failure("rollout")
def run_rollout(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None = None,
    teacher: str | None = None,
) -> StageResult:
    """Sample what a round still lacks; write the manifest of its samples when nothing does.

    Args:
        run: the run.
        round_index: the round.
        worker: which units are ours.
        progress: told of each unit.
        slot: where an engine of the student is kept between stages, if one is.
        teacher: who samples, the prompts that it teaches; None for the student, all prompts.

    Raises:
        ConfigError: prompts or model cannot be used, or the round before is not trained.
        IdentityError: the round was planned with other settings, or the teacher has another
            tokenizer than the student.
    """
    check_run(run)
    if teacher is not None:
        check_teacher(run, teacher)
    manifest = run.rollout(round_index, teacher)
    if manifest is not None:
        return _result(run, round_index, manifest, teacher=teacher)
    require_engine(run.config.rollout.engine, run.config.rollout.server.urls)
    if round_index and teacher is None:
        policy_of_round(run, round_index)  # a round whose turn has not come begins no run
    begin(run, stage="rollout", note=progress.note)
    return _sample_round(run, round_index, teacher, worker=worker, progress=progress, slot=slot)


def _sample_round(
    run: Run,
    round_index: int,
    teacher: str | None,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None,
) -> StageResult:
    folder = run.stage_folder(round_index, sample_stage(teacher))
    with _sampler(run, round_index, teacher) as sampler:
        weights, table = sampler.weights, read_prompts(run.storage, sampler.prompts)
        draw = draw_round(run, round_index, table.column("prompt_id"))
        table = draw.routed(table)
        units = _units(run, draw, table, teacher)
        draw.keep(run.storage)
        plan = _pinned_plan(run, round_index, sampler, units=units, draw=draw)
        draw.keep(run.storage)
        job = SampleJob(
            label="rollout" if teacher is None else f"samples of {teacher}",
            round_index=round_index,
            policy_version=weights.version,
            seed=run.config.run.seed,
            default_teacher=round_teacher(run, draw.schedule),
            sampling=sampler.sampling,
            prompts=table,
        )
        stage = SampleStage(run.storage, folder, job, units, plan.fingerprint, sampler.tokenizer)
        own = slot if teacher is None else None
        with lazy_engine(run, run.config.rollout, weights, slot=own, progress=progress) as engine:
            shards, computed = run_sampling(stage, engine, worker=worker, progress=progress)
    manifest = None
    if shards is not None:
        manifest = RolloutManifest(
            run=run.name,
            round=round_index,
            policy_version=weights.version,
            fingerprint=plan.fingerprint,
            units=shards,
            rows=sum(u.shard.rows for u in shards),
            tokens=sum(u.shard.tokens for u in shards),
            teacher=teacher,
        )
        create_record(run.storage, manifest_key(folder), manifest)
    done = _result(run, round_index, manifest, teacher=teacher)
    return replace(done, units=computed, engine_start_s=engine.start_s)


@dataclass(frozen=True)
class _Sampler:
    """Who samples in a round, and how."""

    teacher: str | None
    weights: Weights
    tokenizer: Any
    prompts: PromptsManifest
    sampling: Sampling


@contextmanager
def _sampler(run: Run, round_index: int, teacher: str | None) -> Iterator[_Sampler]:
    """Give the student of a round, or a teacher, for the length of a block."""
    if teacher is not None:
        weights = teacher_weights(run, teacher)
        tokenizer = model_tokenizer(weights.source)
        reader = student_tokenizer(run, teacher, tokenizer)
        prompts = prepare_prompts(run, "train", reader)
        sampling = _sampling(run, tokenizer, weights.source, records=False)
        yield _Sampler(teacher, weights, tokenizer, prompts, sampling)
        return
    policy = policy_of_round(run, round_index)
    with opened_model(run, policy) as source:
        tokenizer = stored_tokenizer(source)
        prompts = prepare_prompts(run, "train", tokenizer)
        sampling = _sampling(run, tokenizer, source, records=True)
        yield _Sampler(None, student_weights(run, policy, source), tokenizer, prompts, sampling)


def _sampling(run: Run, tokenizer: Any, source: ModelSource, *, records: bool) -> Sampling:
    """Return how responses are drawn.

    Args:
        run: the run.
        tokenizer: of the model.
        source: the model.
        records: whether ids beside the sampled ones are recorded, for objectives.
    """
    section, known = run.config.rollout, vocabulary_size(tokenizer)
    return Sampling(
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_new_tokens=section.max_new_tokens,
        stop_token_ids=stop_tokens(section.stop_token_ids, tokenizer, source),
        vocab_size=known,
        candidates=section.candidates if records else 0,
        stop_strings=stop_strings(run, tokenizer),
        sample=max(section.sample, min(section.sample_most, known)) if records else 0,
        sample_mean=section.sample if records and section.sample_most else 0,
    )


def _units(run: Run, draw: Draw, table: pa.Table, teacher: str | None) -> list[Unit]:
    """Return the units of a round; of a teacher those with the prompts that it teaches."""
    section, rows, epochs = run.config.rollout, draw.rows, draw.epochs
    if teacher is not None:
        named = table.column("teacher").fill_null(round_teacher(run, draw.schedule))
        mine = pc.equal(named, teacher).to_numpy()[rows]
        rows, epochs = rows[mine], epochs[mine]
    return cut_units(
        rows,
        epochs,
        samples_per_prompt=section.samples_per_prompt,
        prompts_per_unit=section.prompts_per_unit,
    )


def _pinned_plan(
    run: Run,
    round_index: int,
    sampler: _Sampler,
    *,
    units: list[Unit],
    draw: Draw,
) -> RolloutPlan:
    """Return the round's plan, fixed at the first call; refuse another one later."""
    facts: dict[str, Any] = {
        "run": run.name,
        "round": round_index,
        "policy_version": sampler.weights.version,
        "prompts_fingerprint": sampler.prompts.fingerprint,
        "units": len(units),
        "rows": sum(len(unit.rows) for unit in units),
        "sampling": {**sampler.sampling.words(), "seed": run.config.run.seed},
        **({} if sampler.teacher is None else {"teacher": sampler.teacher}),
    }
    if draw.schedule is not None:
        facts["schedule"] = draw.schedule.model_dump(mode="json")
    plan = RolloutPlan(**facts, fingerprint=fingerprint(facts))
    key = plan_key(run.stage_folder(round_index, sample_stage(sampler.teacher)))
    stands = create_record(run.storage, key, plan)
    check_fingerprint(run.storage, key, stands.fingerprint, plan.fingerprint)
    return plan


def _result(
    run: Run, round_index: int, manifest: RolloutManifest | None, *, teacher: str | None
) -> StageResult:
    """Return the result of a call that has computed nothing."""
    key = run.manifest_key(round_index, sample_stage(teacher))
    return StageResult(
        stage=ROLLOUT if teacher is None else SAMPLES,
        run=run.name,
        round=round_index,
        units=0,
        rows=manifest.rows if manifest else 0,
        tokens=manifest.tokens if manifest else 0,
        manifest=run.storage.url(key) if manifest else None,
        figures=None if teacher is None else SampleFigures(teacher),
    )
