"""The rollout stage: the student of a round samples responses to the round's prompts.

Promises: the plan is fixed before the first sample; units are pure functions of it; run again, it
computes what is missing and nothing else.
"""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint import opened_model
from pipeline.checkpointprobe import find_probe
from pipeline.commit import check_fingerprint, create_record, writer
from pipeline.engine import Sampling
from pipeline.engines import for_policy, open_engine, require_engine
from pipeline.keptengine import EngineKeeper, Turn, Weights
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


def run_rollout(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    keeper: EngineKeeper | None = None,
) -> StageResult:
    """Sample what a round still lacks; write the round's rollout manifest when nothing does.

    Args:
        run: the run.
        round_index: the round.
        worker: which units are ours.
        progress: told of each unit.
        keeper: where an engine is kept between stages, if one is.

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
        return _sample_round(run, round_index, worker=worker, progress=progress, keeper=keeper)


def _sample_round(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    keeper: EngineKeeper | None,
) -> StageResult:
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
        weights = student_weights(run, policy, source)
        with lazy_engine(run, section, weights, keeper=keeper, progress=progress) as engine:
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
    weights: Weights,
    *,
    keeper: EngineKeeper | None,
    progress: Progress,
) -> LazyEngine:
    """Return an engine that samples for a run, not opened yet.

    Args:
        run: the run.
        section: which engine and its settings.
        weights: the model, and the version that names it on servers that are up elsewhere.
        keeper: where an engine of the student is kept between stages; None for any other model.
        progress: told of a start that takes long, of a kept engine, and when memory ran out.
    """
    if keeper is None or not section.vllm.keep_between_stages:
        keeper, section = None, section.for_one_stage
    sharing = [section] if keeper is None else _keeping_sections(run)
    limit = max(response_limit(run, one) for one in sharing)
    longest, note = run.config.prompts.max_tokens + limit, progress.note
    opener = partial(
        open_engine,
        for_policy(section, weights.version),
        weights.source,
        dtype=weights.dtype,
        max_tokens=longest,
        note=note,
        reads_text=bool(run.config.rollout.stop_strings),
    )
    turn = None if keeper is None else Turn(keeper, section, weights, max_tokens=longest, note=note)
    return LazyEngine(opener, note, turn)


def student_weights(run: Run, policy: CheckpointManifest, source: ModelSource) -> Weights:
    """Return a checkpoint of the student as the weights that a stage samples from."""
    probe = find_probe(Path(source.location), policy)
    return Weights(source, policy.policy_version, run.config.student.dtype, probe)


def _keeping_sections(run: Run) -> list[EngineSection]:
    """Return the sections whose stages share one engine, which must hold what each may ask."""
    sections = [run.config.rollout, run.config.eval]
    return [one for one in sections if one is not None and one.vllm.keep_between_stages]


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
