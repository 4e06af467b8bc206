"""The loop that every batch stage shares: which units lack a commit, do them, report progress.

Promises: a unit that has a commit is never computed; several processes may run one stage at once,
splitting it by number or taking units by lease, in an order that is shuffled per attempt.
"""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.runs.leases import Leases
from pipeline.runs.progress import Progress
from pipeline.store import interrupts
from pipeline.store.commit import committed_units
from pipeline.store.storage import Storage
from schemas.keys import commit_key

POLL_S = 2.0
"""Seconds between two looks at units that other workers hold."""


@dataclass(frozen=True)
class Worker:
    """One of several processes that split a stage's units: number `index` of `count`.

    The only one takes units by lease, so that any number of such workers may join.
    """

    index: int = 0
    count: int = 1

    def takes(self, unit_index: int) -> bool:
        """Return whether a unit falls to this worker."""
        return unit_index % self.count == self.index


def run_units(
    storage: Storage,
    folder: str,
    units: Sequence[str],
    *,
    label: str,
    worker: Worker,
    compute: Callable[[int], int],
    progress: Progress,
) -> set[str]:
    """Compute and commit the units that lack a commit; return all that have one afterwards.

    Args:
        storage: the store.
        folder: the stage's folder.
        units: names of all units, in order.
        label: what progress calls the stage.
        worker: which of them are ours.
        compute: computes and publishes the unit with an index; returns its tokens.
        progress: told of each unit.
    """
    done = committed_units(storage, folder)
    mine = [i for i in range(len(units)) if worker.takes(i)]
    todo = [i for i in mine if units[i] not in done]
    random.Random(uuid.uuid4().int).shuffle(todo)
    progress.start(label, len(mine), len(mine) - len(todo))
    try:
        if worker.count > 1:
            for position, index in enumerate(todo):
                interrupts.beat()
                tokens = 0
                if position == 0 or not storage.exists(commit_key(folder, units[index])):
                    tokens = compute(index)
                progress.advance(1, tokens=tokens)
        else:
            _run_leased(storage, folder, units, todo, compute=compute, progress=progress)
    finally:
        progress.stop()
    return committed_units(storage, folder) if todo else done


def _run_leased(
    storage: Storage,
    folder: str,
    units: Sequence[str],
    todo: list[int],
    *,
    compute: Callable[[int], int],
    progress: Progress,
) -> None:
    """Do units that nobody else does, and wait for those of others, who may die."""
    waited_for: set[int] = set()
    with Leases(storage, folder) as leases:
        while todo:
            left = []
            for index in todo:
                interrupts.check()
                if not leases.take(units[index]):
                    left.append(index)
                    continue
                interrupts.beat()
                tokens = 0
                if not storage.exists(commit_key(folder, units[index])):
                    tokens = compute(index)
                leases.release(units[index])
                progress.advance(1, tokens=tokens)
            done = committed_units(storage, folder) if left else set()
            todo = [i for i in left if units[i] not in done]
            progress.advance(len(left) - len(todo))
            if todo and len(todo) == len(left):
                if not waited_for.issuperset(todo):
                    waited_for.update(todo)
                    progress.note(f"waiting for {len(todo)} units that other workers hold")
                interrupts.pause(min(POLL_S, storage.lease_s / 4))
        if committed_units(storage, folder).issuperset(units):
            leases.sweep()
