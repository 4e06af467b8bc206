"""What the learner's processes read of a round: each shard once, and none that is not theirs."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run
from pipeline.stages.train import run_train
from tests.support.countedreads import CountedReads
from tests.support.countedwork import Recorder
from tests.support.rounds import ROUND, forget_training, score_shards
from tests.support.runs import finish, start_function
from tests.support.servers import free_port
from tests.support.tiny import write_run

UNITS = 4


def untrained(finished_run: Path, folder: Path, **changes: object) -> Path:
    """Copy a finished run whose round 0 is not trained; return its run.toml."""
    shutil.copytree(finished_run, folder)
    forget_training(folder)
    (folder / "store/runs/tiny/run.json").unlink()
    return write_run(folder, changes={f"train.{name}": value for name, value in changes.items()})


def train_counted(config: str, round_index: int) -> None:
    """Train a round as one of the learner's processes; print how often each shard was read.

    Nothing that was shared is left behind.
    """
    loaded = load_config(Path(config))
    root = loaded.place.resolve(loaded.config.run.root)
    storage = CountedReads(root, loaded.config.storage)
    tempfile.tempdir = str(Path(config).parent)
    run_train(Run(loaded.config, storage, loaded.place), round_index, progress=Recorder())
    assert not list(Path(tempfile.gettempdir()).glob("opd.units.*"))
    print(json.dumps({key: n for key, n in storage.reads.items() if key.endswith(".parquet")}))


def reads(config: Path, *, processes: int = 1) -> list[tuple[list[int], list[int]]]:
    """Train round 0; return how often each process read each rollout shard and score shard."""
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        start_function(
            train_counted,
            str(config),
            0,
            env={k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(processes)
    ]
    folder, found = config.parent, list[tuple[list[int], list[int]]]()
    scores = {str(path.relative_to(folder / "store")) for path in score_shards(folder)}
    manifest = json.loads((folder / "store" / ROUND / "rollout/manifest.json").read_text())
    rollouts = {unit["shard"]["key"] for unit in manifest["units"]}
    assert len(rollouts) == len(scores) == UNITS
    for process in started:
        outcome = finish(process)
        assert outcome.code == 0, outcome.stderr
        counts = Counter(outcome.result)
        assert counts.keys() <= rollouts | scores
        found.append(([counts[key] for key in rollouts], [counts[key] for key in scores]))
    return found


@pytest.mark.slow
def test_one_process_reads_each_shard_of_a_round_once_however_many_others_there_are(
    finished_run: Path, tmp_path: Path
) -> None:
    few = untrained(finished_run, tmp_path / "few", epochs=2)
    many = untrained(finished_run, tmp_path / "many", epochs=2)
    shards = [path for path in (tmp_path / "many/store").rglob("*.parquet") if path.is_file()]
    for path in shards:
        for number in range(20):
            shutil.copy(path, path.with_name(f"{number:02d}-{path.name}"))
    once = [1] * UNITS
    assert reads(few) == reads(many) == [(once, once)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_of_a_machine_read_the_scores_of_each_unit_once_together(
    finished_run: Path, tmp_path: Path, processes: int
) -> None:
    """The main process reads the rollouts before, for the lengths of their rows."""
    config = untrained(finished_run, tmp_path / "several", micro_batch_tokens=1, epochs=2)
    (main_rollouts, _), *others = found = reads(config, processes=processes)
    assert main_rollouts == [1] * UNITS
    assert [sum(counts) for counts in zip(*(s for _, s in found), strict=True)] == [1] * UNITS
    assert max(sum(counts) for counts in zip(*(r for r, _ in others), strict=True)) <= 1


@pytest.mark.slow
def test_a_process_without_rows_reads_nothing(finished_run: Path, tmp_path: Path) -> None:
    """A step is one row, so that the second process has none."""
    changes = {"shuffle_shards": 1, "sequences_per_step": 1}
    config = untrained(finished_run, tmp_path / "two", **changes)
    (main_rollouts, main_scores), other = reads(config, processes=2)
    assert min(main_rollouts) >= 1 and min(main_scores) >= 1
    assert other == ([0] * UNITS, [0] * UNITS)
