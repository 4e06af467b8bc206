"""`opd train` in two processes: as exact as in one, and as orderly when something fails.

The head is larger than what ZeRO-3 keeps everywhere, and the steps have too few micro-batches for
both processes at their ends. Run as a module under torchrun, this file trains the given runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped] # it ships no types
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from cli.launch import failure_of
from cli.main import main
from pipeline.commit import commit_key, find_record
from pipeline.run import Run, open_run
from schemas.configfile import load_config
from schemas.errors import CapacityError, DataError, OpdError
from schemas.manifest import StateManifest, TrainManifest
from tests.runs import REPOSITORY, Cli, finish, start
from tests.tiny import make_model, write_run

VOCAB = 4096
CHANGES = {
    "rollout.prompts_per_unit": 2,
    "train.sequences_per_step": 3,
    "train.micro_batch_tokens": 48,
    "train.save_steps": 1,
    "train.eps": 1e-4,  # hides rounding, which Adam blows up where gradients are tiny
}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
STEPS = 6
STAGES = (0, 2, 3)
COMMITS = "runs/tiny/rounds/0000/train/commits"


@dataclass(frozen=True)
class Trained:
    """A run of which round 0 is trained."""

    config: Path

    @property
    def run(self) -> Run:
        """Return the run."""
        return open_run(load_config(self.config, ()))

    @property
    def manifest(self) -> TrainManifest:
        """Return the manifest of round 0."""
        found = self.run.train(0)
        assert found is not None
        return found

    def assert_like(self, other: "Trained") -> None:
        """Make sure that figures and weights are those of another run."""
        mine, theirs = self.manifest, other.manifest
        assert mine.summary.keys() == theirs.summary.keys()
        for name, value in theirs.summary.items():
            assert mine.summary[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert (mine.steps, mine.rows, mine.tokens) == (theirs.steps, theirs.rows, theirs.tokens)
        assert mine.optimizer_restarted is theirs.optimizer_restarted is False
        weights = other.weights()
        assert all((t - weights[n]).abs().max() < 1e-5 for n, t in self.weights().items())

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights of checkpoint 1."""
        checkpoint = self.run.checkpoint(1)
        assert checkpoint is not None
        root = Path(self.run.storage.root)
        paths = [root / s.key for n, s in checkpoint.files.items() if n.endswith(".safetensors")]
        return {name: tensor for path in paths for name, tensor in load_file(path).items()}


class Family:
    """Runs that share models and prompts and begin with the same scored round."""

    def __init__(self, folder: Path) -> None:
        """Sample and score the round."""
        self.folder = folder
        make_model(folder / "student", vocab=VOCAB, initializer_range=0.4)
        make_model(folder / "main", vocab=VOCAB, seed=1, teacher=True, initializer_range=0.3)
        config = write_run(folder, changes={**CHANGES, "eval": None})
        for stage in ("rollout", "score"):
            assert call(stage, "-c", str(config), "--round", "0") == 0

    def member(self, name: str, *, processes: int = 1, stage: int = 0) -> Path:
        """Return the configuration of a run of its own."""
        store = self.folder / f"store-{name}"
        shutil.copytree(self.folder / "store", store)
        extra = {"train.num_processes": processes, "train.zero_stage": stage, "eval": None}
        return write_run(
            self.folder, root=str(store), file=f"{name}.toml", changes={**CHANGES, **extra}
        )


def call(*arguments: str) -> int:
    """Run a command in this process and return its exit code."""
    try:
        main(list(arguments))
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what earlier training in this process left from the processes that tests start."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def by_one(family: Family) -> Trained:
    config = family.member("one")
    assert call("train", "-c", str(config), "--round", "0") == 0
    return Trained(config)


@pytest.fixture(scope="module")
def by_two(family: Family) -> dict[int, Trained]:
    """Return runs that two processes under torchrun have trained, one per ZeRO stage."""
    configs = {stage: family.member(f"two-{stage}", stage=stage) for stage in STAGES}
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "tests.test_train_ranks", *map(str, configs.values())],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    return {stage: Trained(config) for stage, config in configs.items()}


@pytest.fixture
def quiet_end() -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list of processes that are ended, with all below them, after the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        for one in processes_below(process):
            one.kill()
        process.kill()


def processes_below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def rank_of(process: psutil.Process) -> str | None:
    try:
        return str(process.environ().get("RANK"))
    except psutil.Error:
        return None


def states(config: Path) -> set[str]:
    """Return the names of the committed states of round 0."""
    return set(Trained(config).run.storage.names(COMMITS))


def wait_for_states(config: Path, process: "subprocess.Popen[str]", count: int) -> None:
    """Wait until training has committed so many states."""
    for _ in range(12000):
        if len(states(config)) >= count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("training does not go on")


def json_lines(stdout: str) -> list[dict[str, Any]]:
    """Return the lines of stdout, each of which must be a JSON object."""
    return [json.loads(line) for line in stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_like_one(
    by_one: Trained, by_two: dict[int, Trained], stage: int
) -> None:
    assert by_one.manifest.steps == STEPS
    by_two[stage].assert_like(by_one)
    assert len(states(by_two[stage].config)) == STEPS


@pytest.mark.slow
def test_a_run_killed_and_interrupted_ends_like_a_quiet_one(
    family: Family,
    by_two: dict[int, Trained],
    quiet_end: list[subprocess.Popen[str]],
) -> None:
    """A process dies by SIGKILL under torchrun, the launcher gets SIGTERM, then all goes well."""
    config = family.member("killed", processes=2, stage=3)
    command = ("train", "-c", str(config), "--round", "0", "--json")
    killed = subprocess.Popen(
        [sys.executable, *TORCHRUN, "cli.main", *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    quiet_end.append(killed)
    wait_for_states(config, killed, 1)
    ranks = processes_below(killed)
    next(p for p in ranks if rank_of(p) == "1").kill()
    assert finish(killed).code != 0
    assert not any(process.is_running() for process in ranks)
    saved = len(states(config))
    assert 0 < saved < STEPS

    interrupted = start(*command)
    quiet_end.append(interrupted)
    wait_for_states(config, interrupted, saved + 1)
    ranks = processes_below(interrupted)
    interrupted.send_signal(signal.SIGTERM)
    outcome = finish(interrupted)
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert [line["exit_code"] for line in json_lines(outcome.stdout)] == [130]
    assert len(ranks) == 2
    assert not any(process.is_running() for process in ranks)
    assert len(states(config)) < STEPS

    outcome = finish(start(*command))
    assert outcome.code == 0, outcome.stderr
    assert [line["stage"] for line in json_lines(outcome.stdout)] == ["train"]
    assert 0 < outcome.result["units"] < STEPS
    assert Trained(config).manifest == by_two[3].manifest


@pytest.mark.slow
def test_an_error_in_one_process_is_told_once_with_its_exit_code(family: Family) -> None:
    config = family.member("corrupt", processes=2)
    root = Path(Trained(config).run.storage.root)
    for shard in sorted(root.glob("cache/*/data/*.parquet"))[2:3]:
        shard.write_bytes(shard.read_bytes()[:-50])
    outcome = finish(start("train", "-c", config, "--round", "0", "--json"))
    assert outcome.code == 4, outcome.stderr
    assert outcome.stderr.count(f"{shard.name} is corrupt") == 1
    assert outcome.stderr.count("opd: ") == 1
    assert "Traceback" not in outcome.stderr
    (error,) = json_lines(outcome.stdout)
    assert error["exit_code"] == 4
    assert shard.name in error["error"]
    assert Trained(config).run.train(0) is None


@pytest.mark.slow
def test_another_number_of_processes_restarts_the_optimizer_and_says_so(
    by_one: Trained, by_two: dict[int, Trained], cli: Cli
) -> None:
    for trained, restarted in ((by_one, False), (by_two[0], True)):
        for stage in ("rollout", "score"):
            cli.ok(stage, "-c", trained.config, "--round", "1")
        outcome = cli("train", "-c", trained.config, "--round", "1", "--json")
        assert outcome.code == 0, outcome.stderr
        manifest = trained.run.train(1)
        assert manifest is not None
        assert manifest.optimizer_restarted is restarted
        assert ("the optimizer starts afresh" in outcome.stderr) is restarted
        assert ("processes 2 → 1" in outcome.stderr) is restarted


@pytest.mark.slow
def test_saved_steps_of_another_number_of_processes_are_trained_again_and_it_is_said(
    family: Family, by_one: Trained, by_two: dict[int, Trained], cli: Cli
) -> None:
    config = family.member("resized")
    shutil.copytree(
        Path(by_two[2].run.storage.root) / COMMITS, family.folder / "store-resized" / COMMITS
    )
    outcome = cli("train", "-c", config, "--round", "0", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["units"] == STEPS
    assert "step-000006-2x-zero2-float32 cannot be used" in outcome.stderr
    assert Trained(config).manifest == by_one.manifest


@pytest.mark.slow
def test_the_states_of_the_last_two_rounds_are_kept_and_a_round_resumes_from_them(
    tmp_path: Path, cli: Cli
) -> None:
    changes = {"run.rounds": 4, "train.save_steps": 1, "eval": None}
    config = write_run(tmp_path, changes=changes)
    cli.ok("run", "-c", config)
    run = Trained(config).run
    finals = {index: state_files(run, state_of(run, index + 1)) for index in range(4)}
    there = {index: {run.storage.exists(key) for key in keys} for index, keys in finals.items()}
    assert there == {0: {False}, 1: {False}, 2: {True}, 3: {True}}
    kept = {Path(key).name for index in (2, 3) for key in finals[index]}
    assert set(run.storage.names("runs/tiny/state")) == kept

    manifest = run.train(3)
    for name in ("rounds/0003/train", "checkpoints/0004"):
        shutil.rmtree(tmp_path / "store/runs/tiny" / name)
    outcome = cli("train", "-c", config, "--round", "3", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "note" not in outcome.stderr
    assert run.train(3) == manifest
    assert manifest is not None
    assert not manifest.optimizer_restarted


def state_of(run: Run, index: int) -> str:
    """Return the key of the state that a checkpoint ends with."""
    checkpoint = run.checkpoint(index)
    assert checkpoint is not None
    assert checkpoint.state is not None
    return checkpoint.state


def state_files(run: Run, key: str) -> list[str]:
    """Return the keys of a state's files, which may be gone."""
    state = find_record(run.storage, key, StateManifest)
    assert state is not None
    return [shard.key for shard in state.files.values()]


@pytest.mark.slow
def test_a_state_whose_record_stands_without_its_files_is_saved_again(
    by_one: Trained, family: Family, cli: Cli
) -> None:
    """Of a run whose manifest and checkpoint were deleted, to train the round once more."""
    config = family.member("again")
    assert call("train", "-c", str(config), "--round", "0") == 0
    store = family.folder / "store-again"
    for path in (store / "runs/tiny/state").iterdir():
        path.unlink()
    shutil.rmtree(store / "runs/tiny/checkpoints/0001")
    (store / "runs/tiny/rounds/0000/train/manifest.json").unlink()
    assert cli.ok("train", "-c", config, "--round", "0")["units"] == STEPS
    run = Trained(config).run
    last = commit_key("runs/tiny/rounds/0000/train", f"step-{STEPS:06d}-1x-zero0-float32")
    assert state_of(run, 1) == last
    assert all(run.storage.exists(key) for key in state_files(run, last))
    assert Trained(config).manifest == by_one.manifest


@pytest.mark.parametrize(
    ("codes", "rank", "kind"),
    [
        ({0: 1, 1: -9}, 1, OpdError),
        ({0: 130, 1: -9}, 1, OpdError),
        ({0: -15, 1: 7}, 1, CapacityError),
        ({0: 4, 1: -15}, 0, DataError),
        ({0: 1, 1: 1}, 0, OpdError),
    ],
    ids=str,
)
def test_the_process_that_failed_first_is_told_from_those_that_followed(
    codes: dict[int, int], rank: int, kind: type[OpdError]
) -> None:
    failures = {r: ProcessFailure(r, 0, code, "none") for r, code in codes.items()}
    found, code, error = failure_of(failures)
    assert (found, code) == (rank, codes[rank])
    assert type(error) is kind
    assert (str(error).find("SIGKILL") > 0) is (codes[rank] == -9)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        if code := call("train", "-c", path, "--round", "0"):
            sys.exit(code)
