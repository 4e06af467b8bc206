"""Which objects of a root are in use: every key that a record of a run or of an index names.

Promises: a record that cannot be read ends the search, for what it names is not known; what any
JSON object of a run names is in use, whatever kind of record it is. Must not: delete.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.cache.index.checks import STATE_NAME, CompactedError, damaged
from pipeline.cache.index.index import Index
from pipeline.cache.index.segments import keys_of_segment, read_table
from pipeline.store.records import READERS, find_record
from pipeline.store.storage import Storage
from pipeline.upkeep.inventory import cache_commits
from schemas.errors import DataError, StorageError
from schemas.forms import is_key
from schemas.keys import (
    CACHE,
    CHECKPOINTS,
    LEASES,
    METRICS,
    PROMPTS,
    REWARDS,
    ROLLOUTS,
    RUNS,
    SAMPLES,
    SCORE,
    STATES,
    TEACHER,
    data_folder,
    index_part,
    manifest_key,
    run_folder,
    scorer_of_key,
    shard_key,
)
from schemas.records.index import IndexState
from schemas.records.seal import SealError, opened
from schemas.strictjson import StrictJSONError

FOLDERS = tuple(f"{folder}/" for folder in (CACHE, PROMPTS, REWARDS, ROLLOUTS, RUNS))
"""How keys begin that records name."""

ATTEMPTS = 5
"""Times that an index is read anew because it was compacted meanwhile."""


def run_references(storage: Storage) -> set[str]:
    """Return every key that a JSON object of any run names.

    Raises:
        DataError: one of them is damaged.
    """
    keys = [key for run in sorted(storage.folders(RUNS)) for key in _records_of_run(storage, run)]
    found: set[str] = set()
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), 64 * READERS):
            some = keys[start : start + 64 * READERS]
            for value in pool.map(partial(_value, storage), some):
                found.update(_keys_in(value))
    return found


def scorer_references(storage: Storage, scorer: str) -> set[str]:
    """Return every key that a scorer's commits and its index name.

    Units that are in the index and not committed yet count: whoever comes next commits them.

    Raises:
        DataError: a commit or an object of the index is damaged.
    """
    index = _index_references(storage, scorer)  # before the commits that are made from it
    commits = {commit.shard.key for commit in cache_commits(storage, scorer)}
    return index | commits


def used_scorers(references: Iterable[str]) -> set[str]:
    """Return the scorers of whose caches something is among some keys."""
    return {scorer for key in references if (scorer := scorer_of_key(key)) is not None}


def _records_of_run(storage: Storage, run: str) -> Iterator[str]:
    """Yield the keys of a run's JSON objects; of a checkpoint, its manifest's only."""
    folder = run_folder(run)
    checkpoints = f"{folder}/{CHECKPOINTS}"
    for name in sorted(storage.folders(checkpoints)):
        yield manifest_key(f"{checkpoints}/{name}")
    for name in sorted(storage.folders(folder) - {CHECKPOINTS, METRICS, STATES}):
        yield from _records_below(storage, f"{folder}/{name}")


def _records_below(storage: Storage, folder: str) -> Iterator[str]:
    for name in sorted(storage.names(folder)):
        if name.endswith(".json"):
            yield f"{folder}/{name}"
    # a teacher may be called `leases`
    named_by_users = folder.endswith((f"/{SCORE}", f"/{TEACHER}", f"/{SAMPLES}"))
    for name in sorted(storage.folders(folder)):
        if named_by_users or name != LEASES:
            yield from _records_below(storage, f"{folder}/{name}")


def _value(storage: Storage, key: str) -> Any:
    """Return the value of a JSON object, None where it is gone."""

    def parsed(data: bytes) -> Any:
        try:
            return opened(data).value
        except (StrictJSONError, SealError) as error:
            raise DataError(
                f"{storage.url(key)} is not JSON as opd writes it: {error}. So what it names is "
                "not known, and nothing may be deleted. Restore or delete it, and run the same "
                "command again"
            ) from error

    return storage.read_checked(key, parsed)


def _keys_in(value: Any) -> Iterator[str]:
    """Yield every text inside a JSON value that looks like a key."""
    if isinstance(value, str):
        if value.startswith(FOLDERS) and is_key(value):
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _keys_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _keys_in(part)


def _index_references(storage: Storage, scorer: str) -> set[str]:
    missed: str | None = None
    for _ in range(ATTEMPTS):
        index = Index(storage, scorer)
        index.refresh()
        try:
            return _keys_of_index(storage, index, scorer)
        except CompactedError as error:
            if error.key == missed:
                raise damaged(storage, error.key, "it is missing") from error
            missed = error.key
    raise StorageError(
        f"{storage.url(index.folder)} changed {ATTEMPTS} times while it was read: other processes "
        "merge it. Run the same command again"
    )


def _keys_of_index(storage: Storage, index: Index, scorer: str) -> set[str]:
    found = {unit.commit.shard.key for unit in index.units.values()}
    states = index_part(index.folder, "states")
    for name in filter(STATE_NAME.fullmatch, storage.names(states)):
        state = find_record(storage, f"{states}/{name}", IndexState)
        for segment in state.runs if state is not None else ():
            found |= set() if segment is None else keys_of_segment(segment)
    for segment in index.state.runs:
        if segment is not None:
            digests = read_table(storage, segment)["sha256"].tolist()
            found |= {shard_key(data_folder(scorer), d.decode()) for d in digests}
    return found
