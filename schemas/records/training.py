"""Records of the learner: states, checkpoints, trained rounds."""

from typing import Any

from schemas.records.record import Versioned
from schemas.records.shards import Shard


class StateManifest(Versioned):
    """A resumable state of the learner: DeepSpeed's files at one optimizer step."""

    step: int
    """Optimizer steps of the whole run so far."""
    world_size: int
    zero_stage: int
    dtype: str
    steps: tuple[dict[str, float | None], ...]
    """Metrics of the round's steps so far."""
    optimizer_restarted: bool
    files: dict[str, Shard]


class CheckpointManifest(Versioned):
    """A Hugging Face folder, or one of a PEFT adapter, whose files are all present."""

    LATER = frozenset({"base"})
    index: int | None
    """None: the base that the run's adapters belong to."""
    policy_version: str
    origin: dict[str, Any]
    """Where the weights come from: the imported model's identity, or run, round and step."""
    state: str | None
    """Key of the learner's state that belongs to these weights."""
    files: dict[str, Shard]
    base: str | None = None
    """Policy version of the run's base, where the folder is that of an adapter."""


class TrainManifest(Versioned):
    """What trained a checkpoint, and from what."""

    LATER = frozenset({"rollout_kl"})
    run: str
    round: int
    fingerprint: str
    policy_version_in: str
    policy_version_out: str
    shards: tuple[str, ...]
    rows: int
    stale_rows: int
    """Rows left out because their policy lags more than `train.max_staleness` rounds."""
    untrained_rows: int
    """Rows left out because no token of theirs is the student's own."""
    tokens: int
    first_step: int
    steps: int
    optimizer_restarted: bool
    metrics: Shard
    summary: dict[str, float]
    """Means over the round's steps, weighted by tokens."""
    rollout_kl: float | None = None
    """KL(what the rollout drew from ‖ the learner before its first step), nats per token: what the
    two engines disagree by. None where the rollout was tempered, cut or of an older student."""
