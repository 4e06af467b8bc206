"""Holds on scorers: while a command takes scores from a scorer or adds to it, nobody deletes it.

Promises: a hold is an object that is seen before anything is looked for; a killed holder stops
nobody for longer than a lease lasts; one that was silent for longer can learn what it missed.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pipeline.runs.leases import Leases
from pipeline.store.storage import Storage
from pipeline.store.sweeps import forget_lost, wait_for_sweep
from schemas.errors import StorageError
from schemas.keys import lease_key, leases_folder, scorer_folder, scorer_key
from schemas.records.scores import ScoreCommit


@dataclass(frozen=True)
class Hold:
    """What keeps clean-up away from whole scorers."""

    storage: Storage
    scorers: Sequence[str]
    name: str

    def check(self, folder: str, commits: Sequence[ScoreCommit]) -> None:
        """Make sure that the shards of a stage's commits are there, and will be from now on.

        Raises:
            StorageError: some were deleted; their commits are, too.
        """
        lost = forget_lost(self.storage, folder, commits) if self.is_lost() else []
        if lost:
            raise StorageError(
                f"the scores of {len(lost)} units were deleted by `opd cache gc` while this "
                "process slept. Run the same command again: it makes them anew"
            )

    def is_lost(self) -> bool:
        """Return whether a clean-up took the holder for dead and may have deleted objects."""
        wait_for_sweep(self.storage, [scorer_key(scorer) for scorer in self.scorers])
        keys = [lease_key(scorer_folder(scorer), self.name) for scorer in self.scorers]
        return not all(map(self.storage.exists, keys))


@contextmanager
def held(storage: Storage, scorers: Sequence[str]) -> Iterator[Hold]:
    """Keep clean-up away from whole scorers for the length of a block; wait for one at work."""
    hold = Hold(storage, scorers, f"hold-{uuid.uuid4().hex}")
    with ExitStack() as stack:
        for scorer in scorers:
            stack.enter_context(Leases(storage, scorer_folder(scorer))).take(hold.name)
        wait_for_sweep(storage, [scorer_key(scorer) for scorer in scorers])
        yield hold


def is_held(storage: Storage, scorer: str) -> bool:
    """Return whether a process that may live holds a scorer or one of its units."""
    folder = leases_folder(scorer_folder(scorer))
    for name in storage.names(folder):
        version = storage.version(f"{folder}/{name}")
        if version is not None and version.age_s <= storage.lease_s:
            return True
    return False
