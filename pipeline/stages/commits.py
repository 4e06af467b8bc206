"""All units of a stage whose shards have plain commits: done by workers, then named together.

Promises: a unit that is committed is not computed again, unless a clean-up took its shard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.runs.progress import Progress
from pipeline.runs.units import Worker, run_units
from pipeline.store.commit import read_commit
from pipeline.store.storage import Storage
from pipeline.store.sweeps import forget_lost
from schemas.records.shards import UnitShard


@dataclass(frozen=True)
class StageUnits:
    """The units of a stage, and where they go."""

    storage: Storage
    folder: str
    """The stage's folder."""
    names: Sequence[str]
    fingerprint: str
    """Digest of the stage's work."""
    label: str
    """What progress calls the stage."""


def commit_units(
    units: StageUnits, compute: Callable[[int], int], *, worker: Worker, progress: Progress
) -> tuple[tuple[UnitShard, ...] | None, int]:
    """Compute and commit the units that lack a commit.

    Args:
        units: all of them.
        compute: computes and publishes the unit with an index; returns its tokens.
        worker: which units are ours.
        progress: told of each unit.

    Returns:
        The units and their shards, or None while some are missing; and the units computed here.

    Raises:
        IdentityError: a commit was made by other work.
    """
    computed = list[str]()
    storage, folder, names = units.storage, units.folder, units.names

    def counted(index: int) -> int:
        tokens = compute(index)
        computed.append(names[index])
        return tokens

    while True:
        done = run_units(
            storage,
            folder,
            names,
            label=units.label,
            worker=worker,
            compute=counted,
            progress=progress,
        )
        if not done.issuperset(names):
            return None, len(computed)
        commits = [read_commit(storage, folder, n, fingerprint=units.fingerprint) for n in names]
        if not forget_lost(storage, folder, [c for c in commits if c.unit not in computed]):
            break
    return tuple(UnitShard(unit=c.unit, shard=c.shard) for c in commits), len(computed)
