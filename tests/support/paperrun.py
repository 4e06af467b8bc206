"""A run on paper: its records, without the models and samples that they would be made from."""

from typing import Any

from pipeline.runs.run import Run
from schemas.config.run import signal_of
from schemas.records.record import Record
from schemas.records.runs import EvalManifest, RolloutManifest, RolloutPlan, TeacherRecord
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.shards import Shard, UnitShard
from schemas.records.training import CheckpointManifest, TrainManifest

UNITS, ROWS, TOKENS = 2, 4, 10
"""Of each stage: units, and rows and tokens of all units."""


def shard_of(name: str, *, tokens: int = TOKENS // UNITS) -> Shard:
    """Return a shard that is nowhere."""
    return Shard(key=name, sha256="0" * 64, bytes=1, rows=ROWS // UNITS, tokens=tokens)


def units_of(folder: str) -> tuple[UnitShard, ...]:
    """Return the units of a stage and their shards, which are nowhere."""
    names = [f"u{unit:05d}" for unit in range(UNITS)]
    return tuple(UnitShard(unit=name, shard=shard_of(f"{folder}/{name}.parquet")) for name in names)


def put(run: Run, key: str, record: Record) -> None:
    """Store a record, in the place of any other."""
    run.storage.put(key, record.to_bytes())


def put_plan(run: Run, index: int) -> None:
    """Store the plan of a round."""
    plan = RolloutPlan(
        run=run.name,
        round=index,
        policy_version=f"policy {index}",
        prompts_fingerprint="prompts",
        units=UNITS,
        rows=ROWS,
        sampling={},
        fingerprint=f"rollout {index}",
    )
    put(run, f"{run.stage_folder(index, 'rollout')}/plan.json", plan)


def put_rollout(run: Run, index: int) -> RolloutManifest:
    """Store the manifest of a sampled round."""
    manifest = RolloutManifest(
        run=run.name,
        round=index,
        policy_version=f"policy {index}",
        fingerprint=f"rollout {index}",
        units=units_of(f"rollouts/{index}"),
        rows=ROWS,
        tokens=TOKENS,
    )
    put(run, run.manifest_key(index, "rollout"), manifest)
    return manifest


def put_checkpoint(run: Run, index: int, *, version: str | None = None) -> None:
    """Store the manifest of a checkpoint."""
    manifest = CheckpointManifest(
        index=index,
        policy_version=version or f"policy {index}",
        origin={},
        state=None,
        files={},
    )
    put(run, f"{run.checkpoint_folder(index)}/manifest.json", manifest)


def identity_of(run: Run, teacher: str, **changes: Any) -> ScorerIdentity:
    """Return who scores for a teacher of a run."""
    fields: dict[str, Any] = {
        "model": {"weights": teacher},
        "engine": "hf",
        "engine_version": "1",
        "dtype": "float32",
        "quantization": None,
        "tokenizer": "t",
        "template": None,
        "vocab_size": 20,
        "codec": "typed-v1",
        "signal": signal_of(run.config).words(),
    }
    return ScorerIdentity(**(fields | changes))


def put_teacher(run: Run, teacher: str) -> None:
    """Store which model stands behind a teacher's name."""
    record = TeacherRecord(model=identity_of(run, teacher).model, tokenizer="t")
    put(run, f"{run.folder}/teachers/{teacher}.json", record)


def put_scores(
    run: Run, index: int, teacher: str, *, identity: ScorerIdentity | None = None, **changes: Any
) -> ScoreManifest:
    """Store the manifest of a scored round, and the scorer that it names."""
    scorer = identity or identity_of(run, teacher)
    fields: dict[str, Any] = {
        "run": run.name,
        "round": index,
        "teacher": teacher,
        "scorer": scorer.key,
        "rollout_fingerprint": f"rollout {index}",
        "units": units_of(f"cache/{scorer.key}/data"),
        "rows": ROWS,
        "tokens": TOKENS,
        "reused_rows": 1,
        "teacher_tokens": 7,
        "reverse_kl": 0.5,
    }
    manifest = ScoreManifest(**(fields | changes))
    put(run, f"cache/{scorer.key}/scorer.json", scorer)
    put(run, run.manifest_key(index, f"score/{teacher}"), manifest)
    return manifest


def put_train(run: Run, index: int, *, first_step: int = 0, steps: int = 3) -> TrainManifest:
    """Store the manifest of a trained round."""
    manifest = TrainManifest(
        run=run.name,
        round=index,
        fingerprint="train",
        policy_version_in=f"policy {index}",
        policy_version_out=f"policy {index + 1}",
        shards=(),
        rows=ROWS,
        stale_rows=0,
        untrained_rows=0,
        tokens=TOKENS,
        first_step=first_step,
        steps=steps,
        optimizer_restarted=False,
        metrics=shard_of("metrics"),
        summary={},
    )
    put(run, run.manifest_key(index, "train"), manifest)
    return manifest


def put_eval(run: Run, index: int, *, accuracy: float = 0.5) -> None:
    """Store the manifest of a graded round."""
    manifest = EvalManifest(
        run=run.name,
        round=index,
        subject="student",
        policy_version=f"policy {index + 1}",
        fingerprint="eval",
        units=units_of("evals"),
        rows=ROWS,
        tokens=TOKENS,
        accuracy=accuracy,
        standard_error=0.1,
        stopped=1.0,
    )
    put(run, run.manifest_key(index, "eval"), manifest)
