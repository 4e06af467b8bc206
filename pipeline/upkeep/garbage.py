"""Clean-up of a root: what nothing names and nobody can still be writing.

Promises: candidates are listed before references are read, so that what is named meanwhile is seen;
what is younger than a limit stays, its age told by the store and looked at again before it is
deleted; a pinned scorer is not touched. Must not: change a record that is in use.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.runs.progress import Progress
from pipeline.store.backend import Leftover
from pipeline.store.records import READERS
from pipeline.store.storage import Storage
from pipeline.upkeep.references import run_references, scorer_references, used_scorers
from schemas.keys import (
    CACHE,
    PINS,
    PROBES,
    PROMPTS,
    ROLLOUTS,
    RUNS,
    commits_folder,
    data_folder,
    index_folder,
    index_part,
    pin_key,
    renumberings_folder,
    scorer_folder,
    states_folder,
    stem,
)
from schemas.records.scores import PinRecord


@dataclass(frozen=True)
class Garbage:
    """An object that may be deleted."""

    key: str
    num_bytes: int


@dataclass
class UnusedScorer:
    """A scorer that no record of any run names."""

    scorer: str
    objects: list[Garbage]
    """All its objects, in the order of deletion."""
    is_young: bool
    """Whether one of them is younger than the limit; then it stays."""


@dataclass
class Collection:
    """What clean-up would free."""

    garbage: list[Garbage] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    young: int = 0
    """Objects that nothing names, and that are younger than the limit."""
    unused: list[UnusedScorer] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)

    def todo(self, *, scorers: bool) -> list[Garbage]:
        """Return the objects to delete, in order; `scorers` adds unused ones that are not young."""
        unused = [one for one in self.unused if scorers and not one.is_young]
        whole = {one.key: one for scorer in unused for one in scorer.objects}
        return [*(one for one in self.garbage if one.key not in whole), *whole.values()]


def totals(garbage: Iterable[Garbage]) -> dict[str, tuple[int, int]]:
    """Return the number and the bytes of objects by their top folder."""
    found: dict[str, tuple[int, int]] = {}
    for one in garbage:
        folder = one.key.split("/")[0]
        objects, size = found.get(folder, (0, 0))
        found[folder] = (objects + 1, size + one.num_bytes)
    return dict(sorted(found.items()))


def find_garbage(storage: Storage, *, limit_s: float, progress: Progress) -> Collection:
    """Return what nothing names.

    Args:
        storage: the root.
        limit_s: seconds that an object must be old.
        progress: told of each scorer.

    Raises:
        DataError: a record is damaged, so that what it names is not known.
    """
    pinned = pinned_scorers(storage)
    scorers = sorted(storage.folders(CACHE))
    candidates = list(_candidates(storage, [s for s in scorers if s not in pinned]))
    leftovers = [one for one in storage.leftovers() if one.age_s >= limit_s]
    references = run_references(storage)
    used = used_scorers(references)
    progress.start("references", len(scorers), 0)
    try:
        for scorer in scorers:
            if scorer not in pinned:
                references |= scorer_references(storage, scorer)
            progress.advance(1)
    finally:
        progress.stop()
    unnamed = [key for key in candidates if key not in references]
    found = Collection(leftovers=leftovers, pinned=sorted(pinned))
    found.garbage, found.young = _sized(storage, unnamed, limit_s)
    for scorer in scorers:
        if scorer not in used and scorer not in pinned:
            found.unused.append(_unused(storage, scorer, limit_s))
    return found


def delete_garbage(
    storage: Storage,
    found: Collection,
    todo: list[Garbage],
    *,
    limit_s: float,
    progress: Progress,
) -> list[Garbage]:
    """Delete objects, and the unfinished writes that were found; return the objects that went.

    Args:
        storage: the root.
        found: what `find_garbage` returned.
        todo: the objects, in order.
        limit_s: seconds that an object must still be old.
        progress: told of each object.
    """
    gone = []
    progress.start("delete", len(todo) + len(found.leftovers), 0)
    try:
        for leftover in found.leftovers:
            storage.discard(leftover)
            progress.advance(1)
        for one in todo:
            version = storage.version(one.key)
            if version is not None and version.age_s >= limit_s:
                storage.delete(one.key)
                gone.append(one)
            progress.advance(1)
    finally:
        progress.stop()
    return gone


def _candidates(storage: Storage, scorers: list[str]) -> Iterator[str]:
    """Yield the keys of all objects that must be named by another one to be of use."""
    folders = [PROMPTS, ROLLOUTS, PROBES]
    folders += [states_folder(run) for run in sorted(storage.folders(RUNS))]
    for scorer in scorers:
        index = index_folder(scorer)
        folders += [data_folder(scorer), index_part(index, "parts"), index_part(index, "tables")]
    for folder in folders:
        for name in sorted(storage.names(folder)):
            yield f"{folder}/{name}"


def _sized(storage: Storage, keys: list[str], limit_s: float) -> tuple[list[Garbage], int]:
    """Return those objects that are old enough, with their lengths, and the number of others."""
    found, young = [], 0
    with ThreadPoolExecutor(READERS) as pool:
        for key, version in zip(keys, pool.map(storage.version, keys), strict=True):
            if version is not None and version.age_s >= limit_s:
                found.append(Garbage(key, version.num_bytes))
            elif version is not None:
                young += 1
    return found, young


def _unused(storage: Storage, scorer: str, limit_s: float) -> UnusedScorer:
    folders = _folders_of_scorer(scorer)
    keys = [f"{folder}/{name}" for folder in folders for name in sorted(storage.names(folder))]
    objects, young = _sized(storage, keys, limit_s)
    return UnusedScorer(scorer, objects, young > 0)


def _folders_of_scorer(scorer: str) -> list[str]:
    """Return its folders in the order of deletion: nothing names what is gone, at any moment."""
    index, folder = index_folder(scorer), scorer_folder(scorer)
    return [
        *(index_part(index, part) for part in ("new", "states", "parts", "tables")),
        *(commits_folder(folder), data_folder(scorer), renumberings_folder(scorer), folder),
    ]


def pin_scorer_cache(storage: Storage, scorer: str, note: str) -> bool:
    """Protect a scorer's cache; return whether it was free before."""
    if storage.exists(pin_key(scorer)):
        return False
    return storage.create(pin_key(scorer), PinRecord(scorer=scorer, note=note).to_bytes())


def unpin_scorer_cache(storage: Storage, scorer: str) -> bool:
    """Give up the protection of a scorer's cache; return whether it was protected."""
    pinned = storage.exists(pin_key(scorer))
    storage.delete(pin_key(scorer))
    return pinned


def pinned_scorers(storage: Storage) -> set[str]:
    """Return the scorers that are protected."""
    return {stem(name) for name in storage.names(PINS)}
