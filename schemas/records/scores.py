"""Records of scorers and of what they scored."""

from typing import Annotated, Any

from pydantic import Field

from schemas.fingerprint import fingerprint
from schemas.forms import Count, Digest, FileName, Label, Mark, Real, Sha256, Words
from schemas.keys import (
    data_folder,
    manifest_key,
    owner,
    parent,
    pin_key,
    score_stage,
    stage_folder,
)
from schemas.records.record import Record, Versioned
from schemas.records.shards import Commit, UnitCommit, UnitShard
from schemas.records.units import flaw_of_units


class CacheCommit(Commit):
    """The commit of a score shard in a scorer's cache; `unit` is the digest of its sequences."""

    LATER = frozenset({"sibling_rows"})
    paid_by: Label
    """Run and round whose teacher pass made the shard."""
    teacher_tokens: Count
    """Prompt and response tokens that the teacher read for it."""
    reused_rows: Count = 0
    """Rows that were taken from other shards."""
    sibling_rows: dict[Digest, Count] = {}
    """Those of them that were taken from other scorers of the same weights, by scorer."""

    def flaw(self) -> str | None:
        """Return how the commit contradicts itself: its shard's name, or too many rows."""
        return super().flaw() or _too_many(self.shard.rows, self.reused_rows, self.sibling_rows)

    def misplaced(self, key: str) -> str | None:
        """Return what it is of, where its key is another unit's, or its shard another scorer's."""
        if not self.shard.is_in(data_folder(owner(key))):
            return f"the commit of a shard elsewhere, {self.shard.key}"
        return super().misplaced(key)


class ScorerIdentity(Versioned):
    """One teacher and one signal, in words; its fingerprint names a scorer."""

    LATER = frozenset({"reuse"})
    model: dict[str, Any]
    engine: Words
    engine_version: Words
    dtype: Words
    quantization: Words | None
    tokenizer: Words
    template: Words | None
    vocab_size: Annotated[int, Field(ge=1, lt=2**31)]
    codec: Words
    signal: dict[str, Any]
    lineage: tuple[Digest, ...] = ()
    """Scorers whose stored scores these were made from; none where the teacher made them."""
    reuse: Words = "exact"
    """`same-weights` where the cache may hold rows that were taken from its siblings."""

    def flaw(self) -> str | None:
        """Return how the identity contradicts itself: its signal has no ids of a position."""
        k = self.signal.get("k")
        least = 0 if self.signal.get("sample") or self.signal.get("candidates") else 1
        is_count = isinstance(k, int) and not isinstance(k, bool) and least <= k < 2**31
        return None if is_count else "its signal has no number k of ids"

    @property
    def key(self) -> str:
        """Digest of the identity; any change of it is another scorer."""
        return fingerprint(self.model_dump(mode="json"))


class ScorerName(Versioned):
    """What a reprocessed scorer is called in its root."""

    scorer: Digest


class RenumberingRecord(Versioned):
    """The renumbering of a scorer's ids, fixed by its first scores."""

    sha256: Sha256


class PinRecord(Versioned):
    """A scorer's cache that clean-up must leave alone."""

    scorer: Digest
    note: str

    def misplaced(self, key: str) -> str | None:
        """Return which scorer it protects, where its key is another one's."""
        return None if key == pin_key(self.scorer) else f"the pin of scorer {self.scorer}"


class RowSquares(Record):
    """Sums over rows of squares and products: what the error of a mean over tokens is made of."""

    values: Real
    """Of each row's squared sum of values."""
    products: Real
    """Of its sum of values times its sum of weights."""
    weights: Real
    """Of its squared sum of weights."""


Sum = Annotated[Real, Field(ge=-1e100, le=1e100)]
"""So that figures may be made of it without care."""

Squares = Annotated[Real, Field(ge=0.0, le=1e100)]


PARTS_OF_LOOKS = (
    *(("ended", "rows"), ("longest_prompts", "rows"), ("prompts", "rows"), ("opened", "rows")),
    *(("first_tokens", "tokens"), ("looked", "tokens"), ("ranked", "looked"), ("found", "ranked")),
    *(("compared", "looked"), ("overlap", "compared")),
)
"""Fields of looks that are a part of another one."""


class TokenLooks(Record):
    """What student and teacher say of the tokens that the student sampled, summed.

    Log-probabilities are in nats: the student's as it sampled, the teacher's as it scored.
    """

    LATER = frozenset(
        {"domains", "prompts", "prompt_squares", "weights", "weight_squares"}
        | {"opened", "opened_gap", "opened_squares", "openings"}
    )
    rows: Count
    tokens: Count
    """Sampled by the student itself; all sums over tokens are over these."""
    student: Sum
    teacher: Sum
    gap_squares: Squares
    """Of the squares of student minus teacher."""
    first_tokens: Count
    """Those among the first ones of their response."""
    first_student: Sum
    first_teacher: Sum
    ended: Count
    """Rows that the student ended itself."""
    ended_student: Sum
    """Of the token with which it did."""
    ended_teacher: Sum
    looked: Count
    """Tokens at which the kept ids were looked at."""
    ranked: Count
    """Tokens that should be among the ids kept, by their rank."""
    found: Count
    """Those of them that are."""
    compared: Count
    """Tokens at which the student's own top ids were looked for among the ids kept."""
    overlap: Squares
    """Shares of them that were found."""
    shortest_prompt: Count
    longest_prompt: Count
    longest_prompts: Count
    """Rows whose prompt is as long as the longest."""
    prompts: Count = 0
    """Different prompts; 0, as the next three, where an older opd scored."""
    prompt_squares: Squares = 0.0
    """Of each prompt's tokens, in all of its rows, the square: for the error of mean lengths."""
    weights: Squares = 0.0
    """Of the tokens' rows, and of their squares."""
    weight_squares: Squares = 0.0
    opened: Count = 0
    """Rows whose very first token the student sampled; 0 where an older opd scored, or no ids were
    kept."""
    opened_gap: Sum = 0.0
    """Of that token, student minus teacher, and its squares."""
    opened_squares: Squares = 0.0
    openings: dict[str, Count] = {}
    """Token id with which the teacher would begin → rows; the commonest ones of each unit."""
    domains: dict[str, Squares] = {}
    """Domain of the prompts → sum of weight · (student minus teacher)², what it pulls with; empty
    where prompts name none."""

    def flaw(self) -> str | None:
        """Return how the sums contradict each other: more of a part than of the whole."""
        for part, whole in PARTS_OF_LOOKS:
            if getattr(self, part) > getattr(self, whole):
                return f"looks: {part} are {getattr(self, part)} of {getattr(self, whole)} {whole}"
        return None


class ScoreCommit(UnitCommit):
    """One scored unit of a round: which cache shard covers it, and what that took."""

    LATER = frozenset({"sibling_rows", "squares", "looks"})
    reused_rows: Count
    teacher_tokens: Count
    sibling_rows: dict[Digest, Count] = {}
    """Rows of the shard that were taken from other scorers of the same weights, by scorer."""
    sampled_kl: Real
    """Sum of log q − log p over the sampled tokens, nats."""
    sampled_tokens: Count
    squares: RowSquares | None = None
    """Of the rows' sums of log q − log p and of their tokens; None where an older opd scored."""
    looks: TokenLooks | None = None
    """What alarms are judged from; None where an older opd scored."""

    def flaw(self) -> str | None:
        """Return how the commit contradicts itself: its shard's name, or too many rows."""
        if self.sampled_tokens > self.shard.tokens:
            return f"{self.sampled_tokens} tokens are sampled of {self.shard.tokens}"
        flaw = super().flaw() or _too_many(self.shard.rows, self.reused_rows, self.sibling_rows)
        return flaw or (None if self.looks is None else self.looks.flaw())


class ScoreManifest(Versioned):
    """Cache entries that cover one teacher's part of a round."""

    LATER = frozenset({"sibling_rows", "reverse_kl_error", "looks"})
    run: FileName
    round: Count
    teacher: FileName
    scorer: Digest
    rollout_fingerprint: Mark
    units: tuple[UnitShard, ...]
    rows: Count
    tokens: Count
    reused_rows: Count
    """Rows whose scores were there already, from another unit, round or run."""
    teacher_tokens: Count
    """Prompt and response tokens that the teacher read for this round."""
    sibling_rows: dict[Digest, Count] = {}
    """Rows that came into the shards from other scorers of the same weights, by scorer."""
    reverse_kl: Real | None
    """Mean log μ − log p of the sampled tokens, nats: the reverse KL to this teacher of what was
    drawn from, which is the student where the rollout was neither tempered nor cut."""
    reverse_kl_error: Real | None = None
    """Its standard error, rows being independent."""
    looks: TokenLooks | None = None
    """What alarms are judged from; None where an older opd scored."""

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: its units, their sums, or too many rows."""
        folder = data_folder(self.scorer)
        flaw = flaw_of_units(
            self.units, folder=folder, rows=self.rows, tokens=self.tokens, distinct=False
        ) or _too_many(self.rows, self.reused_rows, self.sibling_rows)
        return flaw or (None if self.looks is None else self.looks.flaw())

    def misplaced(self, key: str) -> str | None:
        """Return what it is of, where its key is another round's or teacher's."""
        home = manifest_key(stage_folder(self.run, self.round, score_stage(self.teacher)))
        if key == home:
            return None
        return f"the scores of teacher {self.teacher} of round {self.round} of run {self.run}"


class DriftRecord(Versioned):
    """How far a round's teacher engine is from a float32 transformers forward, in nats."""

    teacher: FileName
    scorer: Digest
    engine: Words
    """Engine, versions and number format that score the round."""
    reference: Words
    rows: Count
    tokens: Count
    drift: dict[str, Any]
    """Mean, 99 % and largest difference of token and top-k log-probabilities, and KL(reference ‖
    engine), as `pipeline.scores.drift.Drift` has them."""
    rollout_kl: Real | None
    """That of the round's train manifest, where it was trained by then."""

    def misplaced(self, key: str) -> str | None:
        """Return whose drift it is, where its key is another teacher's."""
        if parent(key).endswith(f"/{score_stage(self.teacher)}"):
            return None
        return f"the drift of teacher {self.teacher}"


def _too_many(rows: int, reused: int, siblings: dict[str, int]) -> str | None:
    """Return that more rows were reused than there are, or that siblings lent more."""
    lent = sum(siblings.values())
    if reused > rows or lent > rows:
        return f"of its {rows} rows {reused} are reused and {lent} of siblings"
    return None
