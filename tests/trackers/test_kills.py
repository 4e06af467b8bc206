"""Whenever processes that tell a tracker are killed, it has each point once; MLflow has a file."""

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakewandb import KEY, fake_wandb
from tests.support.trackers import all_points, points_of, read_back, synced, told_and_killed
from tests.support.trackertold import SUBJECT

REPORT = f"report-{SUBJECT.id}"

STORE, RUN = "trackio.sqlite_storage:SQLiteStorage", "wandb.sdk.wandb_run:Run"


def points_in_rows(rows: list[dict[str, Any]]) -> Iterator[tuple[str, int, float]]:
    for row in rows:
        axis = "step" if "step" in row else "round"
        for name, value in row.items():
            if name.startswith(f"{axis}/"):
                yield name, row[axis], value


def test_tensorboard(tmp_path: Path) -> None:
    moments = (
        "os:replace:1:before",
        "os:replace:2:before",
        "os:fsync:3:after",
        "os:replace:4:after",
    )
    told_and_killed("tensorboard", tmp_path, *moments)
    folder = tmp_path / "seen" / SUBJECT.id
    assert points_of(read_back("tensorboard", folder)["scalars"]) == all_points()
    assert (folder / "report.html").exists()


def test_trackio(tmp_path: Path) -> None:
    moments = (
        f"{STORE}.init_db:1:after",
        "trackio.sqlite_storage:serialize_values:60:before",  # in the transaction of a part
        f"{STORE}.bulk_log:1:after",
        f"{STORE}.commit_artifact_version:1:after",
    )
    told_and_killed("trackio", tmp_path, *moments)
    found = read_back("trackio", tmp_path / "seen")
    assert points_of(found["scalars"]) == all_points()
    assert found["reports"] == [[REPORT, 1]] and len(found["tables"]) == 2


def test_wandb(tmp_path: Path) -> None:
    moments = (
        f"{RUN}.log:70:after",  # some blocks are in its file, and the rest is lost
        f"{RUN}.log:10:before",  # nothing is
        f"{RUN}.finish:1:after",  # all is, and it is not noted
    )
    told_and_killed("wandb", tmp_path, *moments)
    with fake_wandb() as server:
        printed = synced(tmp_path / "seen" / "wandb", server.url, KEY)
    folders = len(list(tmp_path.glob("seen/wandb/offline-run-*")))
    assert printed.count("Finished syncing") == folders == 3, printed  # of four, one was empty
    assert sorted(points_in_rows(server.rows)) == all_points()
    steps = [row["_step"] for row in server.rows]
    assert steps == sorted(set(steps)), "the server takes steps that rise, and each once"
    found = read_back("wandb", tmp_path / "seen")
    assert set(found["ids"]) == {SUBJECT.id} and REPORT in found["artifacts"]


def test_only_one_process_of_a_machine_tells_wandb_of_a_run(tmp_path: Path) -> None:
    lock = tmp_path / "seen" / f"{SUBJECT.id}.lock"
    lock.parent.mkdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match="another process is telling W&B of this run"):
            told_and_killed("wandb", tmp_path)
    assert not (tmp_path / "seen" / "wandb").exists()
