"""Records of scorers and of what they scored."""

from typing import Any

from schemas.fingerprint import fingerprint
from schemas.records.record import Versioned
from schemas.records.shards import Commit, Shard, UnitShard


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
    engine), as `pipeline.scores.drift.Drift` has them."""
    rollout_kl: float | None
    """That of the round's train manifest, where it was trained by then."""
