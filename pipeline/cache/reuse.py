"""What a root knows of a unit's sequences: from the scorer's own cache first, then from siblings.

Promises: where everything is known, everything is taken, and the teacher has nothing to do; where
the teacher must read some of it anyway, shards whose read costs more than it spares are left alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cache.sameweights import borrow, unknown, unnamed_by
from pipeline.cache.scorecache import ScoreCache
from pipeline.scores.candidates import with_own_candidates
from schemas.columns import list_lengths
from schemas.scoresignal import Signal


@dataclass(frozen=True)
class Stored:
    """Stored scores of some of a unit's sequences.

    Attributes:
        scores: score table, one row for each sequence that is known.
        sibling_rows: rows of the unit for which a sibling's scores stand, by the sibling's key.
    """

    scores: pa.Table
    sibling_rows: dict[str, int]


def find_stored(
    rows: pa.Table,
    own: ScoreCache,
    *,
    siblings: Sequence[ScoreCache],
    signal: Signal,
    note: Callable[[str], None],
) -> Stored:
    """Return what is stored of the sequences of rollout rows and pays to be read.

    Args:
        rows: the rows of a unit.
        own: the scorer's cache.
        siblings: caches whose rows may stand for its own, in the order in which they are asked.
        signal: what the scorer keeps.
        note: told of caches and shards that cannot be used.

    Raises:
        DataError: the own index is damaged.
    """
    digests = rows.column("sequence_digest")
    spared = dict(zip(digests.to_pylist(), _tokens(rows), strict=True))
    distinct = list(spared)
    costs = spared if unnamed_by(siblings, own.unnamed(distinct)) else None
    mine = with_own_candidates(own.known(distinct, costs), rows, signal)
    lent = borrow(siblings, unknown(distinct, mine), note, spared=costs)
    found = {key: with_own_candidates(table, rows, signal) for key, table in lent.items()}
    counts = {key: pc.is_in(digests, value_set=_digests(table)) for key, table in found.items()}
    return Stored(
        scores=pa.concat_tables([mine, *found.values()]),
        sibling_rows={key: int(pc.sum(there).as_py()) for key, there in counts.items()},
    )


def _tokens(rows: pa.Table) -> list[int]:
    """Return the tokens that a teacher reads for each row."""
    lengths = list_lengths(rows, "prompt_ids") + list_lengths(rows, "response_ids")
    found: list[int] = lengths.tolist()
    return found


def _digests(table: pa.Table) -> pa.ChunkedArray:
    return table.column("sequence_digest")
