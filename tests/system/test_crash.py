"""kill -9 at the writes of whole runs: the same command ends with the manifests of a quiet run."""

import signal
from pathlib import Path

import pytest

from pipeline.store.storage import Storage
from tests.conftest import UseS3
from tests.support.children import run_until_killed, signalled_at_commit
from tests.support.runs import Cli, finish, keys_below, snapshot, start_function
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run


def kill_again_and_again(config: Path, steps: list[int]) -> int:
    """Run a configuration to its end, each attempt killed some writes on; return the attempts."""
    for attempt in range(200):
        after = steps[attempt % len(steps)]
        child = start_function(run_until_killed, str(config), after, attempt % 2 == 0)
        outcome = finish(child)
        if outcome.code == 0:
            return attempt
        assert outcome.code == -signal.SIGKILL, outcome.stderr
    raise AssertionError("the run never ended")


@pytest.mark.slow
def test_a_run_killed_at_its_writes_ends_with_the_manifests_of_a_quiet_run(
    tmp_path: Path, finished_run: Path
) -> None:
    config = write_run(tmp_path, changes={"train.save_steps": 1})
    attempts = kill_again_and_again(config, [29, 37, 31, 43])
    assert attempts > 3
    quiet, loud = (snapshot(Storage(str(f / "store")), "runs") for f in (finished_run, tmp_path))
    assert loud == quiet


@pytest.mark.s3
@pytest.mark.slow
def test_a_run_on_s3_killed_at_its_writes_ends_with_the_manifests_of_a_quiet_run(
    tmp_path: Path, finished_run: Path, s3_server: SeaweedServer, use_s3: UseS3
) -> None:
    root = use_s3(s3_server.account)
    config = write_run(tmp_path, root=root, changes={"train.save_steps": 1})
    assert kill_again_and_again(config, [37, 47, 53]) > 2
    quiet = snapshot(Storage(str(finished_run / "store")), "runs")
    assert snapshot(Storage(root), "runs") == quiet


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rollout", "score", "train"])
def test_a_killed_stage_goes_on_without_computing_a_committed_unit_again(
    stage: str, finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    quiet = Storage(str(finished_run / "store"))
    config = write_run(
        tmp_path,
        changes={
            "rollout.prompts_per_unit": 1,
            "train.sequences_per_step": 1,
            "train.save_steps": 1,
        },
    )
    storage = Storage(str(tmp_path / "store"))
    before = {"rollout": [], "score": ["rollout"], "train": ["rollout", "score"]}[stage]
    for earlier in before:
        cli.ok(earlier, "-c", config, "--round", "0")
    folder = f"runs/tiny/rounds/0000/{'score/main' if stage == 'score' else stage}"
    words = (stage, "-c", str(config), "--round", "0")
    child = start_function(signalled_at_commit, signal.SIGKILL, folder, *words)
    assert finish(child).code == -signal.SIGKILL
    committed = {key: storage.get(key) for key in keys_below(storage, f"{folder}/commits")}
    assert len(committed) == 1
    result = cli.ok(stage, "-c", config, "--round", "0")
    assert result["units"] == 15
    assert result["manifest"].endswith("manifest.json")
    assert quiet.exists("runs/tiny/run.json")
    if stage != "train":
        assert {key: storage.get(key) for key in committed} == committed
    assert cli.ok(stage, "-c", config, "--round", "0")["units"] == 0


@pytest.mark.slow
def test_sigterm_ends_a_stage_with_130_and_the_same_command_goes_on(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path, changes={"rollout.prompts_per_unit": 1})
    folder, words = "runs/tiny/rounds/0000/rollout", ("rollout", "-c", str(config), "--round", "0")
    outcome = finish(start_function(signalled_at_commit, signal.SIGTERM, folder, *words))
    assert outcome.code == 130
    assert "interrupted" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert cli.ok("rollout", "-c", config, "--round", "0")["units"] == 15
