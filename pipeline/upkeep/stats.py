"""The figures of a scorer's cache: its shards read one by one, summed and put into words.

Promises: one shard is held at a time; what cannot be read is named and left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.runs.progress import Progress
from pipeline.shards.parquet import read_table
from pipeline.shards.scores import read_scores
from pipeline.store.storage import Storage
from pipeline.upkeep.figures import EDGES, ScoreStats, StopStats, bounds_of
from pipeline.upkeep.inventory import cache_commits, rollout_shards, score_manifests
from schemas.errors import DataError, IdentityError
from schemas.records.shards import Shard


@dataclass(frozen=True)
class CacheFigures:
    """The figures of one scorer."""

    scorer: str
    shards: int
    rows: int
    tokens: int
    bytes: int
    bytes_per_token: float | None
    all: dict[str, Any] | None
    """Means and histograms over all positions."""
    positions: list[dict[str, Any]]
    """The same by position; `from` and `to` are inclusive."""
    edges: dict[str, list[float | None]]
    """Edges of the histograms; null is without bound."""
    odd: dict[str, dict[str, int]]
    last_token: dict[str, dict[str, float | None]]
    """Rows and mean teacher probability of the last token, by how the response ended."""
    refused: list[str]
    """Keys of shards that could not be read."""


def cache_figures(storage: Storage, scorer: str, *, progress: Progress) -> CacheFigures:
    """Return the figures of a scorer's committed shards.

    Raises:
        DataError: a commit or a manifest is damaged.
    """
    shards = {commit.shard.sha256: commit.shard for commit in cache_commits(storage, scorer)}
    rollouts = _rollouts_by_shard(storage, scorer)
    stats, stops, refused, size = ScoreStats(), StopStats(), list[str](), 0
    progress.start(f"stats {scorer[:8]}", len(shards), 0)
    try:
        for shard in shards.values():
            try:
                table = read_scores(storage, shard, scorer=scorer)
            except (DataError, IdentityError) as error:
                progress.note(f"left out: {error}")
                refused.append(shard.key)
            else:
                stats.add(table)
                stops.add(table, _finish_reasons(storage, rollouts.get(shard.key)))
                size += shard.bytes
            progress.advance(1, tokens=shard.tokens)
    finally:
        progress.stop()
    tokens = int(stats.tokens.sum())
    return CacheFigures(
        scorer=scorer,
        shards=len(shards) - len(refused),
        rows=stats.rows,
        tokens=tokens,
        bytes=size,
        bytes_per_token=size / tokens if tokens else None,
        all=_figures(stats, slice(None)) if tokens else None,
        positions=list(_by_position(stats)),
        edges={name: [_finite(edge) for edge in edges] for name, edges in EDGES.items()},
        odd=stats.odd,
        last_token=_last_token(stops),
        refused=refused,
    )


def _by_position(stats: ScoreStats) -> Iterator[dict[str, Any]]:
    for bucket in np.flatnonzero(stats.tokens).tolist():
        first, last = bounds_of(bucket)
        figures = _figures(stats, slice(bucket, bucket + 1))
        yield {"from": first, "to": last, **figures}


def _figures(stats: ScoreStats, part: slice) -> dict[str, Any]:
    tokens = int(stats.tokens[part].sum())
    known = int(stats.entropy_tokens[part].sum())
    sums = {
        "topk_mass": (stats.mass, tokens),
        "tail_mass": (stats.tail, tokens),
        "entropy": (stats.entropy, known),
        "token_probability": (stats.probability, tokens),
    }
    return {
        "tokens": tokens,
        **{
            name: float(v[part].sum()) / count if count else None
            for name, (v, count) in sums.items()
        },
        **{
            f"{name}_histogram": counts[part].sum(axis=0).tolist()
            for name, counts in stats.histograms.items()
        },
    }


def _last_token(stops: StopStats) -> dict[str, dict[str, float | None]]:
    return {
        reason: {
            "rows": rows,
            "probability": stops.probability[reason] / rows if rows else None,
        }
        for reason, rows in stops.rows.items()
    }


def _rollouts_by_shard(storage: Storage, scorer: str) -> dict[str, Shard]:
    """Return, for each score shard that a round uses, a rollout shard with the same sequences."""
    found = {}
    for manifest in score_manifests(storage):
        if manifest.scorer != scorer:
            continue
        units = rollout_shards(storage, manifest)
        for unit in manifest.units:
            if unit.unit in units:
                found[unit.shard.key] = units[unit.unit]
    return found


def _finish_reasons(storage: Storage, shard: Shard | None) -> dict[str, str]:
    """Return how each sequence of a rollout shard ended; none where the shard is gone."""
    data = None if shard is None else storage.get(shard.key)
    if shard is None or data is None:
        return {}
    columns = ["sequence_digest", "finish_reason"]
    table, _ = read_table(data, where=storage.url(shard.key), columns=columns)
    return dict(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


def _finite(edge: float) -> float | None:
    return float(edge) if np.isfinite(edge) else None
