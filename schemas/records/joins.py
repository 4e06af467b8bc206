"""Manifests from the commits of their units, and means with their errors. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from schemas.records.runs import RolloutManifest
from schemas.records.scores import RowSquares, ScoreCommit, ScoreManifest, TokenLooks
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
    sampled, rows = sum(c.sampled_tokens for c in commits), sum(c.shard.rows for c in commits)
    mean = sum(c.sampled_kl for c in commits) / sampled if sampled else None
    squares = added([commit.squares for commit in commits])
    error = None
    if mean is not None and squares is not None:
        error = standard_error(mean, sampled, squares, rows=rows)
    return ScoreManifest(
        run=rollout.run,
        round=rollout.round,
        teacher=teacher,
        scorer=scorer,
        rollout_fingerprint=rollout.fingerprint,
        units=tuple(UnitShard(unit=c.unit, shard=c.shard) for c in commits),
        rows=rows,
        tokens=sum(c.shard.tokens for c in commits),
        reused_rows=sum(c.reused_rows for c in commits),
        teacher_tokens=sum(c.teacher_tokens for c in commits),
        sibling_rows=sibling_rows(commits),
        reverse_kl=mean,
        reverse_kl_error=error,
        looks=added_looks([commit.looks for commit in commits]),
    )


def sibling_rows(commits: Sequence[ScoreCommit]) -> dict[str, int]:
    """Return how many rows of some units came from each sibling scorer."""
    found = Counter[str]()
    for commit in commits:
        found.update(commit.sibling_rows)
    return dict(found)


def added(parts: list[RowSquares | None]) -> RowSquares | None:
    """Return the sums of all parts; None where one of them is not known, or there is none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    return RowSquares(
        values=math.fsum(part.values for part in known),
        products=math.fsum(part.products for part in known),
        weights=math.fsum(part.weights for part in known),
    )


def standard_error(mean: float, weight: float, squares: RowSquares, *, rows: int) -> float | None:
    """Return the standard error of a weighted mean over tokens, rows being independent draws.

    Args:
        mean: the mean, a ratio of sums.
        weight: sum of the weights.
        squares: sums over rows.
        rows: how many; one alone has no error that can be told.
    """
    if rows < 2 or weight <= 0.0:
        return None
    spread = squares.values - 2.0 * mean * squares.products + mean * mean * squares.weights
    found = math.sqrt(max(spread, 0.0) * rows / (rows - 1)) / weight
    return found if math.isfinite(found) else None


NO_SUMS = ("shortest_prompt", "longest_prompt", "longest_prompts", "domains", "openings")
"""Fields of looks that are added otherwise."""


def added_looks(parts: Sequence[TokenLooks | None]) -> TokenLooks | None:
    """Return the sums of all parts; None where one of them is not known, or there is none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    filled = [part for part in known if part.rows] or known
    longest = max(part.longest_prompt for part in filled)
    sums: dict[str, Any] = {
        name: (sum if field.annotation is int else math.fsum)(getattr(part, name) for part in known)
        for name, field in TokenLooks.model_fields.items()
        if name not in NO_SUMS
    }
    openings = Counter[str]()
    for part in known:
        openings.update(part.openings)
    return TokenLooks(
        **sums,
        openings=dict(sorted(openings.items())),
        shortest_prompt=min(part.shortest_prompt for part in filled),
        longest_prompt=longest,
        longest_prompts=sum(p.longest_prompts for p in filled if p.longest_prompt == longest),
        domains={
            name: math.fsum(part.domains.get(name, 0.0) for part in known)
            for name in sorted({name for part in known for name in part.domains})
        },
    )
