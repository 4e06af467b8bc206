"""Resumable states of the learner in the store: DeepSpeed's files, committed by a manifest.

DeepSpeed's own `latest` names a torn state when a process dies while saving; here a state is
visible only through a record that is written after every file of every process.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.learner.learner import Learner
from pipeline.learner.ranks import Ranks, barrier, from_main, gather_objects, together
from pipeline.runs.run import Run
from pipeline.store.records import create_record, find_record
from pipeline.store.scratch import scratch
from pipeline.store.storage import file_sha256
from schemas.config.train import TrainSection
from schemas.keys import state_key
from schemas.records.shards import Shard
from schemas.records.training import StateManifest


def save_state(run: Run, key: str, learner: Learner, *, record: StateManifest) -> StateManifest:
    """Write the learner's state and commit it under a key; every process must call.

    Args:
        run: the run.
        key: key of the record.
        learner: whose state it is.
        record: what the state belongs to; its files are filled in.
    """
    with scratch("state") as folder:
        learner.save(folder, {})
        files = gather_objects(together(lambda: _upload(run, folder)))
    merged = {path: shard for part in files for path, shard in part.items()}
    record = record.model_copy(update={"files": merged})
    return from_main(lambda: _commit(run, key, record))


def load_state(run: Run, state: StateManifest, learner: Learner, ranks: Ranks) -> None:
    """Restore a learner from a committed state; every process must call.

    Raises:
        DataError: a file is missing or corrupt.
    """
    with _shared_folder(ranks) as folder:
        if ranks.local_rank == 0:
            together(lambda: _download(run, state, folder))
        else:
            together(lambda: None)
        learner.load(folder)
        barrier()


def find_state(run: Run, key: str | None) -> StateManifest | None:
    """Return a committed state whose files are still there, or None."""
    state = None if key is None else find_record(run.storage, key, StateManifest)
    if state is None or not all(run.storage.exists(f.key) for f in state.files.values()):
        return None
    return state


def misfit(state: StateManifest, train: TrainSection, ranks: Ranks) -> str | None:
    """Return why a state cannot be loaded by this learner, or None where it can."""
    pairs = {
        "processes": (state.world_size, ranks.count),
        "zero_stage": (state.zero_stage, train.zero_stage),
        "dtype": (state.dtype, train.dtype),
    }
    found = [f"{name} {old} → {new}" for name, (old, new) in pairs.items() if old != new]
    return ", ".join(found) or None


def drop_states(run: Run, keys: Iterable[str], *, keep: Iterable[str]) -> None:
    """Delete the files of states that no longer matter; their records stay.

    A record may be a stranger's: nothing but a state's file of this run is deleted by it.
    """
    kept = {shard.key for key in keep for shard in _files(run, key)}
    for shard in (shard for key in keys for shard in _files(run, key)):
        if shard.key not in kept and shard.key == state_key(run.name, shard.sha256):
            run.storage.delete(shard.key)


def _files(run: Run, key: str) -> Iterable[Shard]:
    state = find_record(run.storage, key, StateManifest)
    return state.files.values() if state else ()


def _commit(run: Run, key: str, record: StateManifest) -> StateManifest:
    """Create a state's record, or replace one whose files are gone."""
    stands = create_record(run.storage, key, record)
    if stands is not record and find_state(run, key) is None:
        run.storage.put(key, record.to_bytes())
        return record
    return stands


def _download(run: Run, state: StateManifest, folder: Path) -> None:
    for name, shard in state.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        run.storage.download(shard, path)


def _upload(run: Run, folder: Path) -> dict[str, Shard]:
    files: dict[str, Shard] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = state_key(run.name, file_sha256(path))
        files[str(path.relative_to(folder))] = run.storage.upload(key, path)
    return files


@contextmanager
def _shared_folder(ranks: Ranks) -> Iterator[Path]:
    """Give the processes of a machine one temporary folder for the length of a block."""
    with ExitStack() as stack:
        mine = str(stack.enter_context(scratch("state"))) if ranks.local_rank == 0 else None
        folders: list[Any] = gather_objects(mine)
        yield Path(folders[ranks.rank - ranks.local_rank])
