"""A run on paper: its records, without the models and samples that they would be made from."""

from typing import Any

from pipeline.runs.run import Run
from schemas.config.run import signal_of
from schemas.fingerprint import fingerprint
from schemas.keys import ROLLOUTS, data_folder, metrics_folder, shard_key, unit_name
from schemas.records.record import Record
from schemas.records.runs import EvalManifest, RolloutManifest, RolloutPlan, TeacherRecord
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.shards import Shard, UnitShard
from schemas.records.training import CheckpointManifest, TrainManifest

UNITS, ROWS, TOKENS = 2, 4, 10
"""Of each stage: units, and rows and tokens of all units."""


def digest(*words: object) -> str:
    """Return the digest that stands for something on paper, such as `policy 1`."""
    return fingerprint(list(words))


def shard_of(
    folder: str, name: str, *, rows: int = ROWS // UNITS, tokens: int = TOKENS // UNITS
) -> Shard:
    """Return a shard that is nowhere."""
    sha256 = 2 * fingerprint(name)
    key = shard_key(folder, sha256)
    return Shard(key=key, sha256=sha256, bytes=1, rows=rows, tokens=tokens)


def units_of(
    folder: str, name: str, rows: int = ROWS // UNITS, tokens: int = TOKENS // UNITS
) -> tuple[UnitShard, ...]:
    """Return the units of a stage and their shards, which are nowhere."""
    units = [unit_name(number) for number in range(UNITS)]
    shards = [shard_of(folder, f"{name} {unit}", rows=rows, tokens=tokens) for unit in units]
    return tuple(UnitShard(unit=u, shard=s) for u, s in zip(units, shards, strict=True))


def put(run: Run, key: str, record: Record) -> None:
    """Store a record, in the place of any other."""
    run.storage.put(key, record.to_bytes())


def plan_of(run: Run, index: int) -> RolloutPlan:
    """Return the plan of a round."""
    facts: dict[str, Any] = {
        "run": run.name,
        "round": index,
        "policy_version": digest("policy", index),
        "prompts_fingerprint": digest("prompts"),
        "units": UNITS,
        "rows": ROWS,
        "sampling": {},
    }
    return RolloutPlan(**facts, fingerprint=fingerprint(facts))


def put_plan(run: Run, index: int) -> None:
    """Store the plan of a round."""
    put(run, f"{run.stage_folder(index, 'rollout')}/plan.json", plan_of(run, index))


def put_rollout(run: Run, index: int) -> RolloutManifest:
    """Store the plan and the manifest of a sampled round."""
    put_plan(run, index)
    manifest = RolloutManifest(
        run=run.name,
        round=index,
        policy_version=digest("policy", index),
        fingerprint=plan_of(run, index).fingerprint,
        units=units_of(ROLLOUTS, f"rollout {index}"),
        rows=ROWS,
        tokens=TOKENS,
    )
    put(run, run.manifest_key(index, "rollout"), manifest)
    return manifest


def put_checkpoint(run: Run, index: int, *, version: str | None = None) -> None:
    """Store the manifest of a checkpoint."""
    manifest = CheckpointManifest(
        index=index,
        policy_version=version or digest("policy", index),
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
    run: Run,
    index: int,
    teacher: str,
    *,
    identity: ScorerIdentity | None = None,
    share: tuple[int, int] = (ROWS // UNITS, TOKENS // UNITS),
    **changes: Any,
) -> ScoreManifest:
    """Store the manifest of a scored round, and the scorer that it names.

    Args:
        run: the run.
        index: the round.
        teacher: name of the teacher.
        identity: the scorer.
        share: rows and tokens of each unit that are the teacher's.
        changes: fields that are others.
    """
    scorer = identity or identity_of(run, teacher)
    fields: dict[str, Any] = {
        "run": run.name,
        "round": index,
        "teacher": teacher,
        "scorer": scorer.key,
        "rollout_fingerprint": plan_of(run, index).fingerprint,
        "units": units_of(data_folder(scorer.key), f"scores {index} {teacher}", *share),
        "rows": UNITS * share[0],
        "tokens": UNITS * share[1],
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
        fingerprint=digest("train"),
        policy_version_in=digest("policy", index),
        policy_version_out=digest("policy", index + 1),
        shards=(),
        rows=ROWS,
        stale_rows=0,
        untrained_rows=0,
        tokens=TOKENS,
        first_step=first_step,
        steps=steps,
        optimizer_restarted=False,
        metrics=shard_of(metrics_folder(run.name), f"steps {index}", rows=steps),
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
        policy_version=digest("policy", index + 1),
        fingerprint=digest("eval"),
        units=units_of(ROLLOUTS, f"eval {index}"),
        rows=ROWS,
        tokens=TOKENS,
        accuracy=accuracy,
        standard_error=0.1,
        stopped=1.0,
    )
    put(run, run.manifest_key(index, "eval"), manifest)
