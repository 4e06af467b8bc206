"""`opd train` in several processes: the figures of one, deaths, exit codes, declared restarts."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from cli.main import main
from pipeline.learner.ranks import place_of
from tests.support.runs import Cli, finish, start, start_function
from tests.support.tiny import write_run
from tests.support.warm import Process

TRAIN = "runs/tiny/rounds/0000/train"
TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--no-python")
MANY_STEPS = {"epochs": 8, "zero_stage": 2}


def untrained(
    finished_run: Path, folder: Path, loss: Mapping[str, object] | None = None, /, **changes: object
) -> Path:
    """Copy a finished run to a folder and forget what training left; return its run.toml."""
    shutil.copytree(finished_run, folder)
    for key in ("rounds/0001", "rounds/0000/train", "rounds/0000/eval", "checkpoints/0001"):
        shutil.rmtree(folder / "store/runs/tiny" / key)
    shutil.rmtree(folder / "store/runs/tiny/checkpoints/0002")
    (folder / "store/runs/tiny/run.json").unlink()
    named = {f"train.{name}": value for name, value in changes.items()}
    return write_run(folder, changes={"train.save_steps": 1, **named, **(loss or {})})


def with_modules_of_ours(folder: Path) -> Path:
    """Make a folder with modules that are called as ours and torch's are, and leave a mark."""
    for name in ("cli", "pipeline", "schemas", "torch", "deepspeed"):
        package = folder / name
        package.mkdir(parents=True)
        mark = f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()"
        for module in ("__init__", "main", "__main__"):
            (package / f"{module}.py").write_text(mark)
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "store" / TRAIN / "manifest.json").read_text())
    return found


def weights(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "store/runs/tiny/checkpoints/0001").glob("*.safetensors")
    return load_file(path)


def assert_same_weights(folder: Path, other: Path) -> None:
    """Compare what was trained in two folders, which is not what training began with."""
    ours, theirs = weights(folder), weights(other)
    begin = load_file(folder / "student" / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 2e-4, name
    assert all((theirs[name] - tensor).abs().max() > 2e-3 for name, tensor in begin.items())


def learn(python: str, *arguments: str) -> None:
    """Run `opd train`; it starts its processes with this program instead of Python."""
    sys.executable, sys.argv = python, ["opd", "train", *arguments, "--json"]
    main()


def train(config: Path, python: str, round_index: int = 0) -> Process:
    """Start the training of a round in processes that this program starts."""
    return start_function(learn, python, "-c", str(config), "--round", str(round_index))


def started() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def is_rank_1(process: psutil.Process) -> bool:
    return str(process.environ().get("RANK")) == "1"


def ended_after(
    saved: int, process: Process, config: Path, end: Callable[[list[psutil.Process]], None]
) -> tuple[int, str]:
    """Let it save so many states, do something to end it; return its exit code and stderr."""
    states = config.parent / "store" / TRAIN / "commits"
    before = started()
    try:
        while len(list(states.glob("*.json"))) < saved:
            assert process.poll() is None
            time.sleep(0.02)
        learners = list(started() - before)  # and the warm processes that they stand for
        end(learners)
    finally:
        outcome = finish(process)
    assert len(learners) >= 2
    assert not psutil.wait_procs(learners, timeout=120)[1]
    assert "Traceback" not in outcome.stderr
    assert not (config.parent / "store" / TRAIN / "manifest.json").exists()
    return outcome.code, outcome.stderr


@pytest.mark.slow
def test_a_killed_process_and_a_sigterm_end_all_and_the_same_command_goes_on(
    finished_run: Path, tmp_path: Path, cli: Cli, warm_python: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    config = untrained(finished_run, one, **MANY_STEPS)
    other = untrained(finished_run, two, **MANY_STEPS, num_processes=2)
    quiet = cli.ok("train", "-c", config, "--round", "0")
    assert quiet["units"] == quiet["steps"] > MANY_STEPS["epochs"]

    process = train(other, warm_python)
    code, told = ended_after(2, process, other, lambda ps: next(filter(is_rank_1, ps)).kill())
    assert code == 7
    assert "process 1 of the learner was ended by SIGKILL" in told
    process = train(other, warm_python)
    code, told = ended_after(6, process, other, lambda _: process.send_signal(signal.SIGTERM))
    assert code == 130, told

    hostile = tmp_path / "hostile"
    words = ("train", "-c", other, "--round", "0", "--json")
    outcome = finish(start(*words, cwd=with_modules_of_ours(hostile)))  # ordinary Python
    assert not (hostile / "ran").exists()
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["steps"] == quiet["steps"]
    assert outcome.result["units"] <= quiet["steps"] - 6
    for name in ("loss", "reverse_kl", "learning_rate"):
        assert outcome.result[name] == pytest.approx(quiet[name], rel=1e-3)
    assert_same_weights(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "count"), [(0, 1), (3, 2), (2, 4)])
def test_several_processes_train_what_one_trains(
    zero_stage: int,
    count: int,
    finished_run: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """One by the configuration is two by torchrun."""
    folder = tmp_path / "several"
    config = untrained(finished_run, folder, num_processes=count, zero_stage=zero_stage)
    if count == 1:
        opd = request.getfixturevalue("warm_opd").split()
        words = ("train", "-c", config, "--round", "0", "--json")
        outcome = finish(start(*words, launcher=(*TORCHRUN, *opd)))
    else:
        outcome = finish(train(config, request.getfixturevalue("warm_python")))
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["steps"] == 2
    assert sum(line.startswith("{") for line in outcome.stdout.splitlines()) == 1
    one, two = manifest(finished_run)["summary"], manifest(folder)["summary"]
    for name in ("loss", "reverse_kl", "student_mass", "learning_rate"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)
    assert_same_weights(folder, finished_run)


OF_RESPONSES: dict[str, object] = {
    "loss.kind": "opd",
    "loss.importance": "geometric",
    "loss.policy.discount": 0.5,
    "loss.weights.entropy_share": 0.5,
    "loss.weights.divergence_share": 0.3,
    "loss.weights.prefix": 0.5,
    "loss.weights.end": 0.5,
}


@pytest.mark.slow
def test_what_is_chosen_of_responses_does_not_depend_on_who_trains_them(
    finished_run: Path, tmp_path: Path, cli: Cli, warm_python: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    whole = untrained(finished_run, one, OF_RESPONSES)
    cli.ok("train", "-c", whole, "--round", "0")
    cut = untrained(finished_run, two, OF_RESPONSES, num_processes=2, micro_batch_tokens=24)
    outcome = finish(train(cut, warm_python))
    assert outcome.code == 0, outcome.stderr
    found, expected = manifest(two)["summary"], manifest(one)["summary"]
    assert 0.5 <= expected["token_kept"] < 0.9
    for name in ("loss", "token_kept", "token_weight", "importance_cut"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    assert_same_weights(two, one)


@pytest.mark.slow
def test_a_damaged_shard_ends_all_processes_with_exit_4(
    finished_run: Path, tmp_path: Path, warm_python: str
) -> None:
    folder = tmp_path / "two"
    config = untrained(finished_run, folder, num_processes=2)
    scores = json.loads(
        (folder / "store/runs/tiny/rounds/0000/score/main/manifest.json").read_text()
    )
    shard = folder / "store" / scores["units"][0]["shard"]["key"]
    shard.write_bytes(shard.read_bytes()[:-10])
    outcome = finish(train(config, warm_python))
    assert outcome.code == 4, outcome.stderr
    assert shard.name in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (folder / "store/runs/tiny/checkpoints/0001").exists()


@pytest.mark.slow
def test_another_number_of_processes_restarts_the_optimizer_and_says_so(
    finished_run: Path, tmp_path: Path, warm_python: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    for key in ("rounds/0001/train", "rounds/0001/eval", "checkpoints/0002"):
        shutil.rmtree(folder / "store/runs/tiny" / key)
    config = write_run(folder, changes={"train.save_steps": 1, "train.num_processes": 2})
    outcome = finish(train(config, warm_python, 1))
    assert outcome.code == 0, outcome.stderr
    assert "optimizer" in outcome.stderr
    record = folder / "store/runs/tiny/rounds/0001/train/manifest.json"
    assert json.loads(record.read_text())["optimizer_restarted"] is True
    quiet = finished_run / "store/runs/tiny/rounds/0001/train/manifest.json"
    assert json.loads(quiet.read_text())["optimizer_restarted"] is False


MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 0, 1)),
        ({"RANK": "0"}, (0, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MEETING}, (5, 1, 8)),
    ],
)
def test_a_place_among_processes_is_what_the_launcher_says(
    environment: Mapping[str, str], place: tuple[int, int, int]
) -> None:
    assert place_of(environment) == place


@pytest.mark.parametrize(
    "environment",
    [
        *({"WORLD_SIZE": word} for word in ("2", "0", "", "-1")),
        *({"RANK": word} for word in ("x", "3", "1e0")),
        {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MEETING},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MEETING},
        {"RANK": "1", "WORLD_SIZE": "2", **MEETING},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "9" * 5000, "LOCAL_RANK": "1", **MEETING},
        {"RANK": "1", "WORLD_SIZE": "\uff12", "LOCAL_RANK": "1", **MEETING},
    ],
)
def test_an_impossible_place_is_told_with_what_the_environment_says(
    environment: Mapping[str, str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, word in environment.items():
        monkeypatch.setenv(name, word)
    outcome = cli("train", "-c", write_run(tmp_path), "--round", "0")
    assert outcome.code == 2
    assert "the environment says" in outcome.stderr and len(outcome.stderr) < 700
