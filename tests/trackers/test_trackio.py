"""trackio in a folder: its database has what is stored, once, however often it is sent."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.support.trackers import in_environment, read_back


def test_a_run_is_sent_as_it_is_stored_and_nothing_twice(run_copy: Path) -> None:
    config = run_copy / "run.toml"
    table = '\n[track]\nreport = false\n[track.trackio]\nfolder = "seen"\n'
    config.write_text(config.read_text() + table)
    first = in_environment("track", "-c", config, "--json")
    assert first.code == 0, first.stderr
    assert first.result["sent"] == {"trackio": 4}
    with sqlite3.connect(
        run_copy / "seen" / "opd.db"
    ) as connection:  # as a kill before it leaves it
        connection.execute(
            "DELETE FROM metrics WHERE log_id GLOB '*/0001' OR log_id GLOB '*/0001/*'"
        )
    connection.close()
    again = in_environment("track", "-c", config, "--json")
    assert again.result["sent"] == {"trackio": 1}, again.stderr
    run = open_run(load_config(config))
    trained, graded = [run.train(index) for index in range(2)], run.evaluation(1)
    found = read_back("trackio", run_copy / "seen")
    steps = [step for step, _ in found["scalars"]["step/loss"]]
    assert sorted(steps) == list(range(sum(one.steps for one in trained if one is not None)))
    assert graded is not None
    assert found["scalars"]["round/accuracy"][-1] == [1, pytest.approx(graded.accuracy)]
    assert [len(rows) for rows in found["tables"]] == [4, 4]  # a unit's
    assert found["settings"]["loss.kind"] == run.config.loss.kind
    assert "opd.fingerprint" in found["settings"]
