"""States of the learner in the store: whole or not there, deleted only where nobody needs them."""

import pytest

from pipeline.learner.ranks import Ranks
from pipeline.learner.states import drop_states, find_state, misfit
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from schemas.config.train import TrainSection
from schemas.fingerprint import sha256
from schemas.keys import state_key
from schemas.records.shards import Shard
from schemas.records.training import StateManifest
from tests.support.minimal import minimal_run
from tests.support.paperrun import put


def file_of(name: str) -> Shard:
    """Return a file of a state, named after its content."""
    digest = sha256(name.encode())
    return Shard(key=state_key("demo", digest), sha256=digest, bytes=1, rows=0, tokens=0)


def state(*files: str, step: int = 1) -> StateManifest:
    return StateManifest(
        step=step,
        world_size=2,
        zero_stage=1,
        dtype="float32",
        steps=(),
        optimizer_restarted=False,
        files={name: file_of(name) for name in files},
    )


@pytest.fixture
def run(memory: Storage) -> Run:
    """Return a run with two states that share a file."""
    made = minimal_run(memory)
    for name in ("a", "b", "c"):
        memory.put(file_of(name).key, name.encode())
    put(made, "old", state("a", "b"))
    put(made, "new", state("b", "c", step=2))
    return made


def files_left(run: Run) -> set[str]:
    """Return which files of states are there."""
    return {name for name in ("a", "b", "c") if run.storage.exists(file_of(name).key)}


def test_a_state_is_found_while_all_its_files_are_there(run: Run) -> None:
    assert find_state(run, "old") == state("a", "b")
    run.storage.delete(file_of("b").key)
    assert find_state(run, "old") is find_state(run, "new") is None


def test_no_key_and_no_record_are_no_state(run: Run) -> None:
    assert find_state(run, None) is find_state(run, "nowhere") is None


def test_dropping_a_state_keeps_the_files_of_those_that_are_kept(run: Run) -> None:
    drop_states(run, ["old", "nowhere"], keep=["new"])
    assert files_left(run) == {"b", "c"}
    assert run.storage.exists("old")
    assert find_state(run, "new") == state("b", "c", step=2)
    drop_states(run, ["old", "new"], keep=[])
    assert files_left(run) == set()


def test_what_is_kept_and_dropped_alike_is_kept(run: Run) -> None:
    drop_states(run, ["old", "new"], keep=["old"])
    assert files_left(run) == {"a", "b"}


@pytest.mark.parametrize("victim", ["cache/a/scorer.json", "runs/demo/run.json", "runs/b/run.json"])
def test_dropping_a_state_deletes_nothing_else_that_its_record_names(run: Run, victim: str) -> None:
    run.storage.put(victim, b"{}")
    stray = file_of("a").model_copy(update={"key": victim})
    put(run, "strange", state("b").model_copy(update={"files": {"a": stray}}))
    drop_states(run, ["strange"], keep=[])
    assert run.storage.exists(victim)


@pytest.mark.parametrize(
    ("processes", "stage", "dtype", "reason"),
    [
        (2, 1, "float32", None),
        (4, 1, "float32", "processes 2 → 4"),
        (2, 3, "float32", "zero_stage 1 → 3"),
        (2, 1, "bfloat16", "dtype float32 → bfloat16"),
        (1, 0, "float32", "processes 2 → 1, zero_stage 1 → 0"),
    ],
)
def test_a_state_fits_the_learner_that_it_was_saved_by(
    processes: int, stage: int, dtype: str, reason: str | None
) -> None:
    train = TrainSection.model_validate(
        {"learning_rate": 1e-3, "sequences_per_step": 1, "zero_stage": stage, "dtype": dtype}
    )
    assert (
        misfit(state(), train, Ranks(rank=0, local_rank=0, count=processes, device="cpu")) == reason
    )
