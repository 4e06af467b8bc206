"""Manifests from the commits of their units. Pure."""

from collections import Counter
from collections.abc import Sequence

from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreCommit, ScoreManifest
from schemas.records.shards import UnitShard


def score_manifest(
    commits: Sequence[ScoreCommit], *, rollout: RolloutManifest, teacher: str, scorer: str
) -> ScoreManifest:
    """Return the manifest of a teacher's part of a round.

    Args:
        commits: of all units, in order.
        rollout: what was scored.
        teacher: name of the teacher.
        scorer: key of the scorer.
    """
    sampled = sum(c.sampled_tokens for c in commits)
    return ScoreManifest(
        run=rollout.run,
        round=rollout.round,
        teacher=teacher,
        scorer=scorer,
        rollout_fingerprint=rollout.fingerprint,
        units=tuple(UnitShard(unit=c.unit, shard=c.shard) for c in commits),
        rows=sum(c.shard.rows for c in commits),
        tokens=sum(c.shard.tokens for c in commits),
        reused_rows=sum(c.reused_rows for c in commits),
        teacher_tokens=sum(c.teacher_tokens for c in commits),
        sibling_rows=sibling_rows(commits),
        reverse_kl=sum(c.sampled_kl for c in commits) / sampled if sampled else None,
    )


def sibling_rows(commits: Sequence[ScoreCommit]) -> dict[str, int]:
    """Return how many rows of some units came from each sibling scorer."""
    found = Counter[str]()
    for commit in commits:
        found.update(commit.sibling_rows)
    return dict(found)
