"""MLflow: a database of its own has what is stored, once, however often it is sent."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.support.trackers import (
    all_points,
    in_environment,
    points_of,
    read_back,
    told_and_killed,
)
from tests.support.trackertold import SUBJECT

MOMENTS = ("create_run:1:after", "log_batch:2:after", "log_dict:1:after", "log_batch:6:before")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database that processes were told of which were killed: it takes long to make."""
    folder = tmp_path_factory.mktemp("killed")
    client = "mlflow.tracking.client:MlflowClient"
    told_and_killed("mlflow", folder, *(f"{client}.{moment}" for moment in MOMENTS))
    return folder / "seen" / "mlflow.db"


def test_it_has_each_point_once_whenever_processes_were_killed(killed: Path) -> None:
    found = read_back("mlflow", killed, SUBJECT.name)
    assert points_of(found["scalars"]) == all_points()
    assert found["reports"] == ["report.html"] and found["status"] == "FINISHED"
    assert found["files"] == ["samples/0000.json", "samples/0001.json"]


def test_a_run_is_sent_as_it_is_stored_and_nothing_twice(run_copy: Path, killed: Path) -> None:
    config, database = run_copy / "run.toml", killed
    table = f'\n[track]\nreport = false\n[track.mlflow]\nuri = "{killed}"\n'
    config.write_text(config.read_text() + table)
    first = in_environment("track", "-c", config, "--json")
    assert first.code == 0, first.stderr
    assert first.result["sent"] == {"mlflow": 4}
    with sqlite3.connect(database) as connection:  # as a kill between points and tag leaves it
        where = (
            "key = 'opd.sent.0001' AND run_uuid IN (SELECT run_uuid FROM runs WHERE name = 'tiny')"
        )
        connection.execute(f"DELETE FROM tags WHERE {where}")
    connection.close()
    again = in_environment("track", "-c", config, "--json")
    assert again.result["sent"] == {"mlflow": 1}, again.stderr
    run = open_run(load_config(config))
    trained, graded = [run.train(index) for index in range(2)], run.evaluation(1)
    found = read_back("mlflow", database, run.name)
    steps = [step for step, _ in found["scalars"]["step/loss"]]
    assert steps == list(range(sum(one.steps for one in trained if one is not None)))
    assert graded is not None
    assert found["scalars"]["round/accuracy"][-1] == [1, pytest.approx(graded.accuracy)]
    assert found["files"] == ["samples/0000.json", "samples/0001.json"]
    assert found["settings"]["loss.kind"] == run.config.loss.kind
    assert found["status"] == "FINISHED"
