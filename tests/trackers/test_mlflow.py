"""MLflow: a database of its own has what is stored, once, however often it is sent."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.support.trackers import in_environment, read_back


def test_a_run_is_sent_as_it_is_stored_and_nothing_twice(run_copy: Path) -> None:
    config, database = run_copy / "run.toml", run_copy / "seen" / "mlflow.db"
    table = '\n[track]\nreport = false\n[track.mlflow]\nuri = "seen/mlflow.db"\n'
    config.write_text(config.read_text() + table)
    first = in_environment("track", "-c", config, "--json")
    assert first.code == 0, first.stderr
    assert first.result["sent"] == {"mlflow": 4}
    with sqlite3.connect(database) as connection:  # as a kill between points and tag leaves it
        connection.execute("DELETE FROM tags WHERE key = 'opd.sent.0001'")
    connection.close()
    again = in_environment("track", "-c", config, "--json")
    assert again.result["sent"] == {"mlflow": 1}, again.stderr
    run = open_run(load_config(config))
    trained, graded = [run.train(index) for index in range(2)], run.evaluation(1)
    found = read_back("mlflow", database)
    steps = [step for step, _ in found["scalars"]["step/loss"]]
    assert steps == list(range(sum(one.steps for one in trained if one is not None)))
    assert graded is not None
    assert found["scalars"]["round/accuracy"][-1] == [1, pytest.approx(graded.accuracy)]
    assert found["files"] == ["samples/0000.json", "samples/0001.json"]
    assert found["settings"]["loss.kind"] == run.config.loss.kind
    assert found["status"] == "FINISHED"
