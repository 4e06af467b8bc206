"""The rollout stage: the student of a round samples responses to the round's prompts.

Promises: the plan is fixed before the first sample; units are pure functions of it; run again, it
computes what is missing and nothing else.
"""

from typing import Any

from pipeline.checkpoint import opened_model
from pipeline.commit import check_fingerprint, create_record, writer
from pipeline.engine import Sampling
from pipeline.engines import for_policy, open_engine, require_engine
from pipeline.lazyengine import LazyEngine
from pipeline.models import ModelSource, generation_settings
from pipeline.plan import Unit, cut_units, draw_prompts
from pipeline.prompts import prepare_prompts, read_prompts
from pipeline.run import Run, check_run, pin_run
from pipeline.samples import SampleJob, run_sampling
from pipeline.stage import Progress, StageResult, Worker
from pipeline.stopstrings import reading_backend
from pipeline.student import policy_of_round
from pipeline.tokenizer import end_token_ids, load_tokenizer, vocabulary_size
from schemas.enginesections import EngineSection
from schemas.fingerprint import fingerprint
from schemas.manifest import CheckpointManifest, PromptsManifest, RolloutManifest, RolloutPlan


def run_rollout(run: Run, round_index: int, *, worker: Worker, progress: Progress) -> StageResult:
    """Sample what a round still lacks; write the round's rollout manifest when nothing does.

    Raises:
        ConfigError: prompts or model cannot be used, or the round before is not trained.
        IdentityError: the round was planned with other settings.
    """
    check_run(run)
    manifest = run.rollout(round_index)
    if manifest is not None:
        return _result(run, round_index, manifest, computed=0, start_s=0.0)
    require_engine(run.config.rollout.engine, run.config.rollout.server.urls)
    with writer(run.storage):
        pin_run(run)
        return _sample_round(run, round_index, worker=worker, progress=progress)


def _sample_round(run: Run, round_index: int, *, worker: Worker, progress: Progress) -> StageResult:
    policy = policy_of_round(run, round_index)
    section, folder = run.config.rollout, run.stage_folder(round_index, "rollout")
    with opened_model(run, policy) as source:
        tokenizer = load_tokenizer(source.location, revision=None, trust_remote_code=False)
        prompts = prepare_prompts(run.storage, run.config, "train", tokenizer)
        sampling = Sampling(
            temperature=section.temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            max_new_tokens=section.max_new_tokens,
            stop_token_ids=stop_tokens(section.stop_token_ids, tokenizer, source),
            vocab_size=vocabulary_size(tokenizer),
            candidates=section.candidates,
            stop_strings=stop_strings(run, tokenizer),
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
        dtype = run.config.student.dtype
        with lazy_engine(
            run,
            section,
            source,
            policy_version=policy.policy_version,
            dtype=dtype,
            progress=progress,
        ) as engine:
            shards, computed = run_sampling(
                run.storage,
                folder,
                job,
                units,
                fingerprint=plan.fingerprint,
                finish=lambda table: table,
                engine=engine,
                tokenizer=tokenizer,
                worker=worker,
                progress=progress,
            )
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


def lazy_engine(
    run: Run,
    section: EngineSection,
    source: ModelSource,
    *,
    policy_version: str,
    dtype: str,
    progress: Progress,
) -> LazyEngine:
    """Return an engine that samples for a run, not opened yet.

    Args:
        run: the run.
        section: which engine and its settings.
        source: the model.
        policy_version: version of its weights, which names it on servers that are up elsewhere.
        dtype: number format of the model.
        progress: told of a start that takes long, and when memory ran out.
    """
    longest = run.config.prompts.max_tokens + response_limit(run, section)
    named = for_policy(section, policy_version)
    return LazyEngine(
        lambda: open_engine(
            named,
            source,
            dtype=dtype,
            max_tokens=longest,
            note=progress.note,
            reads_text=bool(run.config.rollout.stop_strings),
        ),
        progress.note,
    )


def response_limit(run: Run, section: EngineSection) -> int:
    """Return the most tokens of a response; those of the rollout where a section has none."""
    return getattr(section, "max_new_tokens", None) or run.config.rollout.max_new_tokens


def stop_tokens(
    given: tuple[int, ...] | None, tokenizer: Any, source: ModelSource
) -> tuple[int, ...]:
    """Return the ids that end a response: the configured ones, or all that the model names."""
    if given is not None:
        return tuple(sorted(set(given)))
    return end_token_ids(tokenizer, generation_settings(source))


def stop_strings(run: Run, tokenizer: Any) -> tuple[str, ...]:
    """Return the texts that end a response.

    Raises:
        ConfigError: there are some, and the tokenizer cannot be read token by token.
    """
    strings = run.config.rollout.stop_strings
    if strings:
        reading_backend(tokenizer)
    return strings


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
    key = f"{run.stage_folder(round_index, 'rollout')}/plan.json"
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
