"""Records of a run: what it is, its prompts, its rollouts and evaluations."""

from typing import Any

from schemas.records.record import Versioned
from schemas.records.shards import Shard, UnitShard


class RunRecord(Versioned):
    """What a run is, fixed at its first stage."""

    name: str
    fingerprint: str
    identity: dict[str, Any]
    """Resolved keys that define results, dotted."""
    software: dict[str, str]


class PromptsManifest(Versioned):
    """Prompts of a run, tokenised: pinned at first use."""

    source: str
    source_sha256: str
    fingerprint: str
    shards: tuple[Shard, ...]
    rows: int
    skipped: dict[str, int]


class RolloutPlan(Versioned):
    """What a round samples, fixed before the first sample."""

    run: str
    round: int
    policy_version: str
    prompts_fingerprint: str
    units: int
    rows: int
    sampling: dict[str, Any]
    fingerprint: str


class RolloutManifest(Versioned):
    """All sampled shards of a round, or of an evaluation."""

    run: str
    round: int
    policy_version: str
    fingerprint: str
    units: tuple[UnitShard, ...]
    rows: int
    tokens: int


class TeacherRecord(Versioned):
    """The teacher behind a name of a run, fixed at its first score."""

    model: dict[str, Any]
    tokenizer: str


class EvalManifest(Versioned):
    """Graded samples and their summary."""

    run: str
    round: int | None
    subject: str
    policy_version: str
    fingerprint: str
    units: tuple[UnitShard, ...]
    rows: int
    tokens: int
    accuracy: float
    standard_error: float
    stopped: float
