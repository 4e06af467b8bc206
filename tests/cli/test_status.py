"""What `opd status` draws, and how it is watched."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from pipeline.runs.leases import at_work
from pipeline.store.storage import Storage
from schemas.keys import stage_folder
from tests.support.runs import PRINTED, Cli, finish, start


@pytest.fixture
def half_done(run_copy: Path) -> Path:
    """Return a run whose last round is not scored."""
    storage = Storage(str(run_copy / "store"))
    for stage in ("score/main", "train", "eval"):
        storage.delete(f"{stage_folder('tiny', 1, stage)}/manifest.json")
    return run_copy


def test_a_running_stage_its_holder_the_rates_and_the_next_command_are_shown(
    half_done: Path, cli: Cli
) -> None:
    toml, storage = half_done / "run.toml", Storage(str(half_done / "store"))
    with at_work(storage, stage_folder("tiny", 1, "score/main"), "u00001"):
        said = cli("status", "-c", toml).stdout
        other = cli("status", "-c", toml, "--set", "run.rounds=3").stdout
    assert f"`opd run -c {toml} --set run.rounds=3` for all that is left" in other
    assert "running" in said
    assert re.search(r"round 1 score: process \d+ on \S+ holds u00001, renewed \d+ s ago", said)
    assert f"next: score of round 1: `opd score -c {toml} --round 1`" in said
    assert "tokens a second in round 0: rollout" in said
    assert "of work at the rates of the last scored round" in said


def test_a_finished_run_says_so_and_is_not_watched(finished_run: Path, cli: Cli) -> None:
    said = cli("status", "-c", finished_run / "run.toml", "--watch")
    assert said.code == 0 and said.stdout.rstrip().endswith("all 2 rounds are done")
    assert "next: `opd report -c " in said.stdout


def test_a_watched_run_is_drawn_until_it_is_interrupted(half_done: Path) -> None:
    process = start("status", "-c", half_done / "run.toml", "--watch")
    while process.poll() is None and not os.fstat(PRINTED[process][0].fileno()).st_size:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130 and "next: score of round 1" in outcome.stdout
