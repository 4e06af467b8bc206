"""The rollout stage: the student of a round samples responses to the round's prompts.

Promises: the plan is fixed before the first sample; units are pure functions of it; run again, it
computes what is missing and nothing else.
"""

from typing import Any

from pipeline.admission.gate import begin
from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.engine import Sampling
from pipeline.engines.opening import require_engine
from pipeline.engines.vllm.slot import EngineSlot
from pipeline.models.tokenizer import stored_tokenizer, vocabulary_size
from pipeline.prompts.pinning import prepare_prompts, read_prompts
from pipeline.runs.plan import Unit, cut_units, draw_prompts
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, check_run
from pipeline.runs.units import Worker
from pipeline.stages.sampler import lazy_engine, stop_strings, stop_tokens, student_weights
from pipeline.stages.samples import SampleJob, SampleStage, run_sampling
from pipeline.store.records import check_fingerprint, create_record
from schemas.fingerprint import fingerprint
from schemas.keys import plan_key
from schemas.records.runs import PromptsManifest, RolloutManifest, RolloutPlan
from schemas.records.training import CheckpointManifest


@keeps_failure("rollout")
def run_rollout(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None = None,
) -> StageResult:
    """Sample what a round still lacks; write the round's rollout manifest when nothing does.

    Args:
        run: the run.
        round_index: the round.
        worker: which units are ours.
        progress: told of each unit.
        slot: where an engine is kept between stages, if one is.

    Raises:
        ConfigError: prompts or model cannot be used, or the round before is not trained.
        IdentityError: the round was planned with other settings.
    """
    check_run(run)
    manifest = run.rollout(round_index)
    if manifest is not None:
        return _result(run, round_index, manifest, computed=0, start_s=0.0)
    require_engine(run.config.rollout.engine, run.config.rollout.server.urls)
    if round_index:
        policy_of_round(run, round_index)  # a round whose turn has not come begins no run
    begin(run, stage="rollout", note=progress.note)
    return _sample_round(run, round_index, worker=worker, progress=progress, slot=slot)


def _sample_round(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    slot: EngineSlot | None,
) -> StageResult:
    policy = policy_of_round(run, round_index)
    section, folder = run.config.rollout, run.stage_folder(round_index, "rollout")
    with opened_model(run, policy) as source:
        tokenizer = stored_tokenizer(source)
        prompts = prepare_prompts(run, "train", tokenizer)
        sampling = Sampling(
            temperature=section.temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            max_new_tokens=section.max_new_tokens,
            stop_token_ids=stop_tokens(section.stop_token_ids, tokenizer, source),
            vocab_size=vocabulary_size(tokenizer),
            candidates=section.candidates,
            stop_strings=stop_strings(run, tokenizer),
            sample=section.sample,
        )
        units = _units(run, round_index, prompts.rows)
        plan = _pinned_plan(run, round_index, policy, prompts, sampling=sampling, units=units)
        job = SampleJob(
            label="rollout",
            round_index=round_index,
            policy_version=policy.policy_version,
            seed=run.config.run.seed,
            default_teacher=run.config.default_teacher,
            sampling=sampling,
            prompts=read_prompts(run.storage, prompts),
        )
        weights = student_weights(run, policy, source)
        stage = SampleStage(run.storage, folder, job, units, plan.fingerprint, tokenizer)
        with lazy_engine(run, section, weights, slot=slot, progress=progress) as engine:
            shards, computed = run_sampling(stage, engine, worker=worker, progress=progress)
    manifest = None
    if shards is not None:
        manifest = RolloutManifest(
            run=run.name,
            round=round_index,
            policy_version=policy.policy_version,
            fingerprint=plan.fingerprint,
            units=shards,
            rows=sum(u.shard.rows for u in shards),
            tokens=sum(u.shard.tokens for u in shards),
        )
        create_record(run.storage, run.manifest_key(round_index, "rollout"), manifest)
    return _result(run, round_index, manifest, computed=computed, start_s=engine.start_s)


def _units(run: Run, round_index: int, rows: int) -> list[Unit]:
    section = run.config.rollout
    drawn, epochs = draw_prompts(
        rows,
        per_round=section.prompts_per_round,
        round_index=round_index,
        seed=run.config.run.seed,
    )
    return cut_units(
        drawn,
        epochs,
        samples_per_prompt=section.samples_per_prompt,
        prompts_per_unit=section.prompts_per_unit,
    )


def _pinned_plan(
    run: Run,
    round_index: int,
    policy: CheckpointManifest,
    prompts: PromptsManifest,
    *,
    sampling: Sampling,
    units: list[Unit],
) -> RolloutPlan:
    """Return the round's plan, fixed at the first call; refuse another one later."""
    facts: dict[str, Any] = {
        "run": run.name,
        "round": round_index,
        "policy_version": policy.policy_version,
        "prompts_fingerprint": prompts.fingerprint,
        "units": len(units),
        "rows": sum(len(unit.rows) for unit in units),
        "sampling": {**sampling.words(), "seed": run.config.run.seed},
    }
    plan = RolloutPlan(**facts, fingerprint=fingerprint(facts))
    key = plan_key(run.stage_folder(round_index, "rollout"))
    stands = create_record(run.storage, key, plan)
    check_fingerprint(run.storage, key, stands.fingerprint, plan.fingerprint)
    return plan


def _result(
    run: Run, round_index: int, manifest: RolloutManifest | None, *, computed: int, start_s: float
) -> StageResult:
    key = run.manifest_key(round_index, "rollout")
    return StageResult(
        stage="rollout",
        run=run.name,
        round=round_index,
        units=computed,
        rows=manifest.rows if manifest else 0,
        tokens=manifest.tokens if manifest else 0,
        manifest=run.storage.url(key) if manifest else None,
        engine_start_s=start_s,
    )
