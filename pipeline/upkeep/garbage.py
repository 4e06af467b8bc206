"""Clean-up of a root: what nothing names and nobody can still be writing.

Promises: candidates are listed before references are read, so that what is named meanwhile is seen;
what is younger than a limit stays, its age told by the store; a pinned scorer is not touched. Who
deletes says what may go, and then looks again who names it (`pipeline.store.sweeps`), so that what
runs meanwhile loses nothing. Must not: change a record that is in use; write without `--delete`.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import get_args

from pipeline.cache.holds import is_held
from pipeline.runs.progress import Progress
from pipeline.store.backend import Leftover
from pipeline.store.records import READERS
from pipeline.store.storage import Storage
from pipeline.store.sweeps import Sweep, wait_for_sweep
from pipeline.upkeep.references import run_references, scorer_references, used_scorers
from schemas.errors import ConfigError
from schemas.keys import (
    CACHE,
    PINS,
    PROBES,
    PROMPTS,
    REWARDS,
    ROLLOUTS,
    RUNS,
    IndexFolder,
    commits_folder,
    data_folder,
    index_folder,
    index_part,
    leases_folder,
    pin_key,
    renumberings_folder,
    scorer_folder,
    scorer_key,
    scorer_of_key,
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
    is_held: bool
    """Whether a command works on it now; then it stays."""

    @property
    def keys(self) -> set[str]:
        """Return the keys of all its objects."""
        return {one.key for one in self.objects}


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
        """Return the objects to delete, in order; `scorers` adds unused ones that may go."""
        unused = [one for one in self.unused if scorers and not one.is_young and not one.is_held]
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
    references |= _names_of(storage, [s for s in scorers if s not in pinned], progress)
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

    Raises:
        DataError: a record is damaged.
        StorageError: another clean-up deletes now, or the right to delete was lost.
    """
    for leftover in found.leftovers:
        storage.discard(leftover)
    if not todo:
        return []
    keys = {one.key for one in todo}
    unused = [one for one in found.unused if one.objects and one.keys <= keys]
    folders = [f"{scorer_folder(one.scorer)}/" for one in unused]
    single = [one.key for one in todo if not one.key.startswith(tuple(folders))]
    with Sweep(storage, [*single, *folders]) as sweep:
        free = _still_free(storage, single, unused, progress=progress)
        return _delete(storage, sweep, [one for one in todo if one.key in free], limit_s, progress)


def _still_free(
    storage: Storage,
    keys: list[str],
    unused: list[UnusedScorer],
    *,
    progress: Progress,
) -> set[str]:
    """Return what may go, from a look at all names that comes after the sweep was announced."""
    pinned, named = pinned_scorers(storage), run_references(storage)
    used = used_scorers(named) | pinned
    owners = {owner for key in keys if (owner := scorer_of_key(key)) is not None}
    named |= _names_of(storage, sorted(owners), progress)
    free = {key for key in keys if key not in named and scorer_of_key(key) not in pinned}
    for one in unused:
        if one.scorer not in used and not is_held(storage, one.scorer):
            now = _unused(storage, one.scorer, 0.0).keys
            if now.issubset(one.keys):  # else somebody added to it meanwhile
                free |= now
    return free


def _delete(
    storage: Storage, sweep: Sweep, todo: list[Garbage], limit_s: float, progress: Progress
) -> list[Garbage]:
    gone = []
    progress.start("delete", len(todo), 0)
    try:
        for one in todo:
            version = storage.version(one.key)
            if version is None or version.age_s >= limit_s:
                sweep.delete(one.key)
                gone.append(one)
            progress.advance(1)
    finally:
        progress.stop()
    return gone


def _names_of(storage: Storage, scorers: list[str], progress: Progress) -> set[str]:
    """Return every key that some scorers' commits and indexes name."""
    found: set[str] = set()
    progress.start("references", len(scorers), 0)
    try:
        for scorer in scorers:
            found |= scorer_references(storage, scorer)
            progress.advance(1)
    finally:
        progress.stop()
    return found


def _candidates(storage: Storage, scorers: list[str]) -> Iterator[str]:
    """Yield the keys of all objects that must be named by another one to be of use."""
    folders = [PROMPTS, ROLLOUTS, REWARDS, PROBES]
    folders += [states_folder(run) for run in sorted(storage.folders(RUNS))]
    for scorer in scorers:
        index = index_folder(scorer)
        folders.append(data_folder(scorer))
        folders += [index_part(index, part) for part in ("parts", "tables", "damaged")]
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
    return UnusedScorer(scorer, objects, young > 0, is_held(storage, scorer))


def _folders_of_scorer(scorer: str) -> list[str]:
    """Return its folders in the order of deletion: nothing names what is gone, at any moment."""
    index, folder = index_folder(scorer), scorer_folder(scorer)
    return [
        *(index_part(index, part) for part in get_args(IndexFolder)),
        *(commits_folder(folder), leases_folder(folder), data_folder(scorer)),
        *(renumberings_folder(scorer), folder),
    ]


def pin_scorer_cache(storage: Storage, scorer: str, note: str) -> bool:
    """Protect a scorer's cache; return whether it was free before.

    Raises:
        ConfigError: a clean-up that began before deleted it.
    """
    if storage.exists(pin_key(scorer)):
        return False
    is_new = storage.create(pin_key(scorer), PinRecord(scorer=scorer, note=note).to_bytes())
    wait_for_sweep(storage, [scorer_key(scorer)])
    if scorer not in storage.folders(CACHE):
        storage.delete(pin_key(scorer))
        gone = storage.url(scorer_folder(scorer))
        raise ConfigError(f"{gone} was deleted by a clean-up that began before: nothing is pinned")
    return is_new


def unpin_scorer_cache(storage: Storage, scorer: str) -> bool:
    """Give up the protection of a scorer's cache; return whether it was protected."""
    pinned = storage.exists(pin_key(scorer))
    storage.delete(pin_key(scorer))
    return pinned


def pinned_scorers(storage: Storage) -> set[str]:
    """Return the scorers that are protected."""
    return {stem(name) for name in storage.names(PINS)}
