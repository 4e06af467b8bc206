"""Siblings of a scorer: the same weights under another engine, version, dtype or codec.

Promises: only a scorer whose own identity says `same-weights` has siblings; finding them reads one
small object per scorer of the root, whatever they hold; their caches are read, never written.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa

from pipeline.cache.scorecache import ScoreCache
from pipeline.store.records import read_records
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.keys import CACHE, scorer_key
from schemas.records.scores import ScorerIdentity

MAY_DIFFER = ("engine", "engine_version", "dtype", "codec", "reuse")
"""Fields of an identity that do not change which weights answered which question."""


def find_siblings(
    storage: Storage,
    mine: ScorerIdentity,
    note: Callable[[str], None],
    *,
    most_rows: int | None = None,
) -> list[ScoreCache]:
    """Return the caches whose rows may stand for a scorer's own, the most alike first.

    Args:
        storage: the root's store.
        mine: whose siblings they are; without any unless its identity says `same-weights`.
        note: told of scorers that cannot be read.
        most_rows: rows of the shards that are read of each at most, as `ScoreCache` has it.
    """
    if mine.reuse != "same-weights":
        return []
    keys = sorted(storage.folders(CACHE) - {mine.key})
    places = [scorer_key(key) for key in keys]
    found = []
    for place, identity in read_records(storage, places, ScorerIdentity):
        if isinstance(identity, DataError):
            note(f"its scores are not looked at: {identity}")
        elif place == scorer_key(identity.key) and are_siblings(mine, identity):
            found.append(identity)
    found.sort(key=lambda one: (len(_differences(mine, one)), one.key))
    return [ScoreCache(storage, one, note, most_rows=most_rows, mends=False) for one in found]


def are_siblings(mine: ScorerIdentity, other: ScorerIdentity) -> bool:
    """Return whether two scorers are the same weights asked the same question."""
    return _differences(mine, other).issubset(MAY_DIFFER)


def unnamed_by(siblings: Sequence[ScoreCache], digests: Sequence[str]) -> list[str]:
    """Return the sequences that no sibling's index names; a damaged index names none."""
    left = list(digests)
    for sibling in siblings:
        with suppress(DataError):  # `borrow` says so
            left = sibling.unnamed(left)
    return left


def borrow(
    siblings: Sequence[ScoreCache],
    digests: Sequence[str],
    note: Callable[[str], None],
    *,
    spared: Mapping[str, int] | None = None,
) -> dict[str, pa.Table]:
    """Return the rows that siblings have of some distinct sequences, by the sibling's key.

    Args:
        siblings: the caches, in the order in which they are asked.
        digests: sequence digests, none of them twice.
        note: told of caches that cannot be used.
        spared: tokens that the teacher would read for each sequence, as `ScoreCache.known` has it.
    """
    found, left = dict[str, pa.Table](), list(digests)
    for sibling in siblings:
        if not left:
            break
        try:
            table = sibling.known(left, spared)
        except DataError as error:
            note(f"its scores are not used: {error}")
            continue
        if table.num_rows:
            found[sibling.scorer] = table
            left = unknown(left, table)
    return found


def unknown(digests: Sequence[str], table: pa.Table) -> list[str]:
    """Return the digests that a score table does not have, in order."""
    known = set(table.column("sequence_digest").to_pylist())
    return [digest for digest in digests if digest not in known]


def _differences(mine: ScorerIdentity, other: ScorerIdentity) -> set[str]:
    names = ScorerIdentity.model_fields
    return {name for name in names if getattr(mine, name) != getattr(other, name)}
