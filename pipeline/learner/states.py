"""Resumable states of the learner in the store: safetensors and JSON, committed by a record.

DeepSpeed's own `latest` names a torn state when a process dies while saving; here a state is
visible only through a record that is written after every file of every process. Must not: read
files that can run code, or touch what is not below the run's own folder of states.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.learner.ranks import Ranks, barrier, from_main, gather_objects, together
from pipeline.learner.settings import decayed
from pipeline.runs.run import Run
from pipeline.store.disk.files import file_sha256
from pipeline.store.disk.scratch import scratch
from pipeline.store.records import create_record, find_record
from pipeline.store.sweeps import settle
from schemas.config.train import TrainSection
from schemas.errors import DataError
from schemas.keys import run_folder, state_key, states_folder
from schemas.records.shards import Shard
from schemas.records.training import STATE_FILE, StateManifest

if TYPE_CHECKING:
    from pipeline.learner.learner import Learner

SHA256 = re.compile("[0-9a-f]{64}")


def save_state(run: Run, key: str, learner: "Learner", *, record: StateManifest) -> StateManifest:
    """Write the learner's state and commit it under a key; every process must call.

    Args:
        run: the run.
        key: key of the record.
        learner: whose state it is.
        record: what the state belongs to; its files are filled in.

    Raises:
        ConfigError: a weight is no number, so the learning rate is too high.
    """
    with scratch("state") as folder:
        learner.save(folder)
        mine = together(lambda: _upload(run, folder))
        merged = {path: shard for part in gather_objects(mine) for path, shard in part.items()}
        record = record.model_copy(update={"files": merged})
        stands = from_main(lambda: _commit(run, key, record))
        keys = [shard.key for shard in mine.values()]
        together(lambda: settle(run.storage, keys, lambda _: _upload(run, folder)))
    return stands


def load_state(run: Run, state: StateManifest, learner: "Learner", ranks: Ranks) -> None:
    """Restore a learner from a committed state; every process must call.

    Raises:
        DataError: a file is missing, corrupt or not of such a learner.
    """
    with _shared_folder(ranks) as folder:
        if ranks.local_rank == 0:
            together(lambda: _download(run, state, folder))
        else:
            together(lambda: None)
        try:
            learner.load(folder)
        except DataError as error:
            first = min(shard.key for shard in state.files.values())
            raise DataError(
                f"{error}. It is the state of run {run.name} after step {state.step}: delete its "
                f"file {run.storage.url(first)}, and the same command begins at the one before"
            ) from error
        barrier()


def find_state(run: Run, key: str | None) -> StateManifest | None:
    """Return a committed state whose files are still there, or None.

    Raises:
        DataError: its record is damaged, or names what is not the run's.
    """
    state = None if key is None else _record(run, key)
    if state is None or not all(run.storage.exists(f.key) for f in state.files.values()):
        return None
    return state


def usable(
    run: Run, key: str | None, train: TrainSection, ranks: Ranks
) -> tuple[StateManifest | None, str]:
    """Return a state that this learner can load, or None and why not."""
    state = find_state(run, key)
    if state is None:
        return None, "it was deleted"
    why = misfit(state, train, ranks)
    return (None, why) if why else (state, "")


def misfit(state: StateManifest, train: TrainSection, ranks: Ranks) -> str | None:
    """Return why a state cannot be loaded by this learner, or None where it can."""
    if state.pickled:
        return "an older opd stored it as pickles, which can run code: they are never read"
    if not state.files:
        return "it names no files"
    pairs = {
        "processes": (state.world_size, ranks.count),
        "zero_stage": (state.zero_stage, train.zero_stage),
        "dtype": (state.dtype, train.dtype),
        "weights that decay": (state.decayed, decayed(train)),
    }
    found = [f"{name} {old} → {new}" for name, (old, new) in pairs.items() if old != new]
    return ", ".join(found) or None


def misplaced(state: StateManifest, *, plans: Sequence[str | None], inputs: str) -> str | None:
    """Return why a round cannot go on from a state of its own, or None where it can.

    Args:
        state: the state.
        plans: of the round's steps.
        inputs: digest of what the round trains on.
    """
    if state.plan not in plans:
        return "another opd saved it, which cut the round into other steps"
    if state.inputs not in (None, inputs):
        return "it was trained on other rewards or scores than the round has now"
    return None


def check_place(run: Run, key: str, state: StateManifest, *, steps: range) -> None:
    """Make sure that a state is of where it stands: so many steps after the rounds before.

    Args:
        run: the run.
        key: key of its record.
        state: the state.
        steps: numbers that the steps of its round have in the run; none for the round before.

    Raises:
        DataError: it is of another place.
    """
    done = len(state.steps) if steps else 0
    expected = steps.start + done
    tokens = [step.get("tokens") or 0.0 for step in state.steps]
    if state.step != expected or done > len(steps) or min(tokens, default=1.0) < 1.0:
        raise DataError(
            f"{run.storage.url(key)} is a state after step {state.step}, with figures of "
            f"{len(tokens)} steps of which each trains tokens; expected step {expected}, and at "
            f"most {len(steps)} steps in a round. It is damaged: delete it, and the same command "
            "begins at the state before"
        )


def drop_states(run: Run, keys: Iterable[str], *, keep: Iterable[str]) -> None:
    """Delete the files of states that no longer matter; their records stay."""
    kept = {shard.key for key in keep for shard in _files(run, key)}
    for shard in (shard for key in keys for shard in _files(run, key)):
        if shard.key not in kept:
            run.storage.delete(shard.key)


def _files(run: Run, key: str) -> Iterable[Shard]:
    state = _record(run, key)
    return state.files.values() if state else ()


def _record(run: Run, key: str) -> StateManifest | None:
    """Return a state's record, once it is sure that it and its files are the run's own."""
    if not key.startswith(f"{run_folder(run.name)}/") or not {".", "..", ""}.isdisjoint(
        key.split("/")
    ):
        raise DataError(f"a checkpoint names the state {key!r}, which is not of run {run.name}")
    state = find_record(run.storage, key, StateManifest)
    for name, shard in state.files.items() if state else ():
        own = {state_key(run.name, shard.sha256, ending) for ending in (name.split(".")[-1], "pt")}
        if shard.key not in own or not SHA256.fullmatch(shard.sha256):
            raise DataError(
                f"{run.storage.url(key)} names {shard.key!r} as {name}: a file of a state is below "
                f"{states_folder(run.name)} and named after its content. The record is damaged: "
                "delete it, and the same command begins at the state before"
            )
    return state


def _commit(run: Run, key: str, record: StateManifest) -> StateManifest:
    """Create a state's record, or replace one whose files are gone or are never read."""
    stands = create_record(run.storage, key, record)
    mine, theirs = ((one.plan, one.decayed, one.inputs) for one in (record, stands))
    unread = stands.pickled or mine != theirs
    if stands is not record and (unread or find_state(run, key) is None):
        run.storage.put(key, record.to_bytes())
        return record
    return stands


def _download(run: Run, state: StateManifest, folder: Path) -> None:
    for name, shard in state.files.items():
        run.storage.download(shard, folder / name)


def _upload(run: Run, folder: Path) -> dict[str, Shard]:
    files: dict[str, Shard] = {}
    for path in sorted(p for p in folder.iterdir() if STATE_FILE.fullmatch(p.name)):
        key = state_key(run.name, file_sha256(path), path.suffix[1:])
        files[path.name] = run.storage.upload(key, path)
    return files


@contextmanager
def _shared_folder(ranks: Ranks) -> Iterator[Path]:
    """Give the processes of a machine one temporary folder for the length of a block."""
    with ExitStack() as stack:
        mine = str(stack.enter_context(scratch("state"))) if ranks.local_rank == 0 else None
        folders: list[Any] = gather_objects(mine)
        yield Path(folders[ranks.rank - ranks.local_rank])
