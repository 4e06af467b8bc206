"""States of the learner in the store: whole or not there, deleted only where nobody needs them."""

import pytest

from pipeline.learner.ranks import Ranks
from pipeline.learner.states import drop_states, find_state, misfit
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from schemas.config.train import TrainSection
from schemas.records.training import StateManifest
from tests.support.minimal import minimal_run
from tests.support.paperrun import put, shard_of


def state(*files: str, step: int = 1) -> StateManifest:
    return StateManifest(
        step=step,
        world_size=2,
        zero_stage=1,
        dtype="float32",
        steps=(),
        optimizer_restarted=False,
        files={name: shard_of(f"state/{name}.pt") for name in files},
    )


@pytest.fixture
def run(memory: Storage) -> Run:
    """Return a run with two states that share a file."""
    made = minimal_run(memory)
    for name in ("a", "b", "c"):
        memory.put(f"state/{name}.pt", b"1")
    put(made, "old", state("a", "b"))
    put(made, "new", state("b", "c", step=2))
    return made


def test_a_state_is_found_while_all_its_files_are_there(run: Run) -> None:
    assert find_state(run, "old") == state("a", "b")
    run.storage.delete("state/b.pt")
    assert find_state(run, "old") is find_state(run, "new") is None


def test_no_key_and_no_record_are_no_state(run: Run) -> None:
    assert find_state(run, None) is find_state(run, "nowhere") is None


def test_dropping_a_state_keeps_the_files_of_those_that_are_kept(run: Run) -> None:
    drop_states(run, ["old", "nowhere"], keep=["new"])
    assert run.storage.names("state") == {"b.pt", "c.pt"}
    assert run.storage.exists("old")
    assert find_state(run, "new") == state("b", "c", step=2)
    drop_states(run, ["old", "new"], keep=[])
    assert run.storage.names("state") == set()


def test_what_is_kept_and_dropped_alike_is_kept(run: Run) -> None:
    drop_states(run, ["old", "new"], keep=["old"])
    assert run.storage.names("state") == {"a.pt", "b.pt"}


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
