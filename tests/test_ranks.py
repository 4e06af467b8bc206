"""`opd train` in several processes: the figures of one, exit codes, and declared restarts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.runs import Cli, finish, start
from tests.tiny import write_run

TRAIN = "runs/tiny/rounds/0000/train"


def untrained(finished_run: Path, folder: Path, **changes: object) -> Path:
    """Copy a finished run to a folder and forget what training left; return its run.toml."""
    shutil.copytree(finished_run, folder)
    for key in ("rounds/0001", "rounds/0000/train", "rounds/0000/eval", "checkpoints/0001"):
        shutil.rmtree(folder / "store/runs/tiny" / key)
    shutil.rmtree(folder / "store/runs/tiny/checkpoints/0002")
    named = {f"train.{name}": value for name, value in changes.items()}
    return write_run(folder, changes={"train.save_steps": 1, **named})


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "store" / TRAIN / "manifest.json").read_text())
    return found


def weights(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "store/runs/tiny/checkpoints/0001").glob("*.safetensors")
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_processes_train_what_one_trains(
    zero_stage: int, finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    config = untrained(finished_run, folder, num_processes=2, zero_stage=zero_stage)
    outcome = finish(start("train", "-c", config, "--round", "0", "--json"))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["steps"] == 2
    assert sum(line.startswith("{") for line in outcome.stdout.splitlines()) == 1
    one, two = manifest(finished_run)["summary"], manifest(folder)["summary"]
    for name in ("loss", "reverse_kl", "student_mass", "learning_rate"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)
    ours, theirs = weights(folder), weights(finished_run)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 2e-4, name


@pytest.mark.slow
def test_a_damaged_shard_ends_all_processes_with_exit_4(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    config = untrained(finished_run, folder, num_processes=2)
    scores = json.loads(
        (folder / "store/runs/tiny/rounds/0000/score/main/manifest.json").read_text()
    )
    shard = folder / "store" / scores["units"][0]["shard"]["key"]
    shard.write_bytes(shard.read_bytes()[:-10])
    outcome = finish(start("train", "-c", config, "--round", "0", "--json"))
    assert outcome.code == 4, outcome.stderr
    assert shard.name in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (folder / "store/runs/tiny/checkpoints/0001").exists()


@pytest.mark.slow
def test_another_number_of_processes_restarts_the_optimizer_and_says_so(
    finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    for key in ("rounds/0001/train", "rounds/0001/eval", "checkpoints/0002"):
        shutil.rmtree(folder / "store/runs/tiny" / key)
    config = write_run(folder, changes={"train.save_steps": 1, "train.num_processes": 2})
    outcome = finish(start("train", "-c", config, "--round", "1", "--json"))
    assert outcome.code == 0, outcome.stderr
    assert "optimizer" in outcome.stderr
    record = folder / "store/runs/tiny/rounds/0001/train/manifest.json"
    assert json.loads(record.read_text())["optimizer_restarted"] is True
    quiet = finished_run / "store/runs/tiny/rounds/0001/train/manifest.json"
    assert json.loads(quiet.read_text())["optimizer_restarted"] is False
