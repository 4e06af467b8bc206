"""Training: from stored scores alone, and never from damaged or foreign ones."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.store.storage import Storage
from tests.support.forged import forged
from tests.support.rounds import ROUND, forget, forget_training, score_shards, stages
from tests.support.runs import Cli
from tests.support.tiny import make_model, write_run


def test_training_needs_no_teacher_folder(run_copy: Path, cli: Cli) -> None:
    before = Storage(str(run_copy / "store")).get(f"{ROUND}/train/manifest.json")
    forget_training(run_copy)
    shutil.rmtree(run_copy / "main")
    stages(cli, run_copy / "run.toml", "train")
    assert Storage(str(run_copy / "store")).get(f"{ROUND}/train/manifest.json") == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_a_damaged_score_shard_stops_training_with_exit_4_and_its_name(
    damage: str, run_copy: Path, cli: Cli
) -> None:
    forget_training(run_copy)
    shard, other = score_shards(run_copy)[:2]
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-100])
    elif damage == "delete":
        shard.unlink()
    else:
        shard.write_bytes(other.read_bytes())
    outcome = cli("train", "-c", run_copy / "run.toml", "--round", "0", "--json")
    assert outcome.code == 4, outcome.stderr
    assert shard.name in outcome.stderr
    assert outcome.result["exit_code"] == 4
    assert not (run_copy / "store/runs/tiny/checkpoints/0001").exists()


def test_scores_of_another_teacher_stop_training_with_exit_3(run_copy: Path, cli: Cli) -> None:
    config = write_run(run_copy, changes={"run.name": "other", "teachers.main.model": "impostor"})
    make_model(run_copy / "impostor", teacher=True, seed=99)
    shutil.copytree(run_copy / "store/runs/tiny", run_copy / "store/runs/other")
    for name in ("run.json", "teachers", "rounds", "checkpoints", "admission"):
        forget(run_copy, f"runs/other/{name}")
    stages(cli, config, "rollout", "score")
    forget_training(run_copy)
    theirs = run_copy / "store/runs/other/rounds/0000/score/main/manifest.json"
    mine = run_copy / "store" / ROUND / "score/main/manifest.json"
    foreign = json.loads(theirs.read_text())
    foreign["run"] = "tiny"
    foreign["rollout_fingerprint"] = json.loads(mine.read_text())["rollout_fingerprint"]
    mine.write_bytes(forged(foreign))
    outcome = cli("train", "-c", write_run(run_copy), "--round", "0")
    assert outcome.code == 3, outcome.stderr
    assert "another teacher" in outcome.stderr


def test_a_learner_that_is_not_the_student_that_sampled_stops_before_a_state_is_saved(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path, changes={"eval": None, "run.rounds": 1})
    stages(cli, config, "rollout", "score")
    tight = ("train", "-c", config, "--round", "0", "--set", "train.max_rollout_kl=1e-30")
    outcome = cli(*tight)
    assert outcome.code == 4 and "away from what the rollout drew from" in outcome.stderr
    assert "rollout_kl" in outcome.stderr and "at most 1e-30" in outcome.stderr
    assert not list((tmp_path / "store" / ROUND / "train").glob("commits/*.json"))
    assert cli("train", "-c", config, "--round", "0").code == 0
