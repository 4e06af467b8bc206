"""Why a stage stands still is kept beside it."""

from pathlib import Path

import pytest

from pipeline.runs.reporting import keeps_failure, last_failure
from pipeline.runs.run import Run, pin_run
from pipeline.store.storage import Storage
from schemas.errors import CapacityError, DataError, IdentityError
from schemas.keys import failure_key, stage_folder
from tests.support.minimal import minimal_run
from tests.support.runs import Cli


@keeps_failure("score")
def stage(run: Run, round_index: int, *, error: BaseException | None) -> int:
    if error is not None:
        raise error
    return round_index


def failed(run: Run, error: BaseException) -> tuple[int, str] | None:
    with pytest.raises(type(error)):
        stage(run, 3, error=error)
    found = last_failure(run, 3, "score")
    return None if found is None else (found.exit_code, found.message)


@pytest.fixture
def begun(memory: Storage) -> Run:
    run = minimal_run(memory)
    pin_run(run)
    return run


def test_the_last_failure_of_a_stage_is_kept_without_secrets_and_on_one_line(begun: Run) -> None:
    assert failed(begun, CapacityError("too long\nfor me")) == (7, "too long\\nfor me")
    assert failed(begun, KeyError("x")) == (1, "KeyError: 'x'")
    assert failed(begun, DataError("s3://key:word@host/a " + "b" * 600)) is not None
    found = last_failure(begun, 3, "score")
    assert found is not None and len(found.message) <= 501 and "word" not in found.message


def test_what_ends_well_or_by_a_signal_leaves_none(begun: Run) -> None:
    assert stage(begun, 3, error=None) == 3
    assert failed(begun, KeyboardInterrupt()) is None


def test_a_run_that_is_not_there_or_of_others_stays_as_it_is(memory: Storage, begun: Run) -> None:
    assert failed(begun, IdentityError("of another configuration")) is None
    assert failed(minimal_run(memory, "run.name=other"), DataError("gone")) is None


def test_a_process_of_a_learner_that_is_not_the_first_leaves_none(
    begun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert failed(begun, DataError("another process ended")) is None


def test_a_failed_stage_says_so_in_status_until_it_is_done(run_copy: Path, cli: Cli) -> None:
    toml = run_copy / "run.toml"
    storage = Storage(str(run_copy / "store"))
    storage.delete(f"{stage_folder('tiny', 1, 'train')}/manifest.json")
    rollout = f"{stage_folder('tiny', 1, 'rollout')}/manifest.json"
    kept = storage.get(rollout) or b""
    storage.delete(rollout)
    assert cli("train", "-c", toml, "--round", "1").code == 2
    (_, second) = cli.ok("status", "-c", toml)["rounds"]
    assert "rollout" in second["stages"]["train"]["failure"]
    said = cli("status", "-c", toml).stdout
    assert "round 1 train: failed: " in said and "opd rollout -c" in said
    storage.put(rollout, kept)
    cli.ok("train", "-c", toml, "--round", "1")
    assert storage.exists(failure_key(stage_folder("tiny", 1, "train")))
    status = cli.ok("status", "-c", toml)
    assert status["rounds"][1]["stages"]["train"]["failure"] is None
    assert status["next_round"] is None
