"""Commits and manifests: the small JSON objects that make data visible. No I/O.

Nothing in them depends on time, attempt or machine, except the `attempt` of a commit: the same
work gives the same manifests.
"""

import json
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from schemas.errors import DataError
from schemas.fingerprint import canonical_json, fingerprint
from schemas.tables import SCHEMA_VERSION


class Record(BaseModel):
    """A frozen JSON object that refuses unknown keys and newer schema versions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later and are left out where they say nothing: digests of records that are
    older stay as they were, and an older opd reads what does not need the field."""

    @model_serializer(mode="wrap")
    def _words(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        words: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        silent = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in words.items() if name not in silent}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the record, ended by a line feed."""
        return canonical_json(self.model_dump(mode="json")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Return the record written in JSON.

        Raises:
            DataError: not JSON, not this kind of record, or of a newer schema version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            _refuse_newer(data, where)
            first = error.errors()[0]
            location = ".".join(str(part) for part in first["loc"]) or "the whole object"
            raise DataError(
                f"{where} is not a {cls.__name__}: {location}: {first['msg']}. The object is "
                "damaged, or another program wrote it"
            ) from error


class Versioned(Record):
    """A record that says which schema version wrote it."""

    schema_version: int = SCHEMA_VERSION

    @field_validator("schema_version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is newer than {SCHEMA_VERSION}")
        return version


class Shard(Record):
    """A content-addressed data object: where it is and what it holds."""

    key: str
    sha256: str
    bytes: int
    rows: int
    tokens: int


class Commit(Versioned):
    """The object that makes one unit's shard visible; created once, never changed."""

    unit: str
    shard: Shard
    fingerprint: str
    attempt: str


class CacheCommit(Commit):
    """The commit of a score shard in a scorer's cache; `unit` is the digest of its sequences."""

    LATER = frozenset({"sibling_rows"})
    paid_by: str
    """Run and round whose teacher pass made the shard."""
    teacher_tokens: int
    """Prompt and response tokens that the teacher read for it."""
    reused_rows: int = 0
    """Rows that were taken from other shards."""
    sibling_rows: dict[str, int] = {}
    """Those of them that were taken from other scorers of the same weights, by scorer."""


class LeaseRecord(Record):
    """Who works on a unit."""

    owner: str
    machine: str
    process: int
    """Number of the process on its machine."""


class IndexPart(Record):
    """Sorted entries of the sequence index in one object."""

    key: str
    rows: int
    first: int
    """Smallest key in it."""
    last: int
    """Largest key in it."""


class IndexRun(Record):
    """Sorted entries in parts that follow one another, and the shards that they number."""

    parts: tuple[IndexPart, ...]
    table: str
    """Key of the table of shards."""

    @property
    def rows(self) -> int:
        """Number of entries."""
        return sum(part.rows for part in self.parts)


class IndexState(Versioned):
    """The runs of a sequence index, one per level at most."""

    number: int
    runs: tuple[IndexRun | None, ...]


class UnitShard(Record):
    """One unit of a finished stage and its shard."""

    unit: str
    shard: Shard


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


class ScorerIdentity(Versioned):
    """One teacher and one signal, in words; its fingerprint names a scorer."""

    LATER = frozenset({"reuse"})
    model: dict[str, Any]
    engine: str
    engine_version: str
    dtype: str
    quantization: str | None
    tokenizer: str
    template: str | None
    vocab_size: int
    codec: str
    signal: dict[str, Any]
    lineage: tuple[str, ...] = ()
    """Scorers whose stored scores these were made from; none where the teacher made them."""
    reuse: str = "exact"
    """`same-weights` where the cache may hold rows that were taken from its siblings."""

    @property
    def key(self) -> str:
        """Digest of the identity; any change of it is another scorer."""
        return fingerprint(self.model_dump(mode="json"))


class ScorerName(Versioned):
    """What a reprocessed scorer is called in its root."""

    scorer: str


class RenumberingRecord(Versioned):
    """The renumbering of a scorer's ids, fixed by its first scores."""

    sha256: str


class PinRecord(Versioned):
    """A scorer's cache that clean-up must leave alone."""

    scorer: str
    note: str


class TeacherRecord(Versioned):
    """The teacher behind a name of a run, fixed at its first score."""

    model: dict[str, Any]
    tokenizer: str


class ScoreCommit(Versioned):
    """One scored unit of a round: which cache shard covers it, and what that took."""

    LATER = frozenset({"sibling_rows"})
    unit: str
    shard: Shard
    fingerprint: str
    reused_rows: int
    teacher_tokens: int
    sibling_rows: dict[str, int] = {}
    """Rows of the shard that were taken from other scorers of the same weights, by scorer."""
    sampled_kl: float
    """Sum of log q − log p over the sampled tokens, nats."""
    sampled_tokens: int


class ScoreManifest(Versioned):
    """Cache entries that cover one teacher's part of a round."""

    LATER = frozenset({"sibling_rows"})
    run: str
    round: int
    teacher: str
    scorer: str
    rollout_fingerprint: str
    units: tuple[UnitShard, ...]
    rows: int
    tokens: int
    reused_rows: int
    """Rows whose scores were there already, from another unit, round or run."""
    teacher_tokens: int
    """Prompt and response tokens that the teacher read for this round."""
    sibling_rows: dict[str, int] = {}
    """Rows that came into the shards from other scorers of the same weights, by scorer."""
    reverse_kl: float | None
    """Mean log q − log p of the sampled tokens, nats: the student's reverse KL to this teacher."""


class DriftRecord(Versioned):
    """How far a round's teacher engine is from a float32 transformers forward, in nats."""

    teacher: str
    scorer: str
    engine: str
    """Engine, versions and number format that score the round."""
    reference: str
    rows: int
    tokens: int
    drift: dict[str, Any]
    """Mean, 99 % and largest difference of token and top-k log-probabilities, and KL(reference ‖
    engine), as `pipeline.drift.Drift` has them."""
    rollout_kl: float | None
    """That of the round's train manifest, where it was trained by then."""


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


def _refuse_newer(data: bytes, where: str) -> None:
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, TypeError, KeyError):
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {version}; this opd reads up to {SCHEMA_VERSION}: "
            "install a newer opd"
        )
