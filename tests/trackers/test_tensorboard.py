"""TensorBoard: what its own reader finds is what is stored, once, however often it is sent."""

from pathlib import Path

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.support.trackers import in_environment, read_back

TABLE = '\n[track.tensorboard]\nfolder = "seen"\n'


def test_a_run_is_sent_as_it_is_stored_and_nothing_twice(run_copy: Path) -> None:
    config = run_copy / "run.toml"
    config.write_text(config.read_text() + TABLE)
    first = in_environment("track", "-c", config, "--json")
    assert first.code == 0, first.stderr
    run = open_run(load_config(config))
    trained, graded = [run.train(index) for index in range(2)], run.evaluation(1)
    assert first.result["sent"] == {"tensorboard": 4}
    (folder,) = (run_copy / "seen").iterdir()
    last = sorted(folder.glob("*0001-eval"))[0]
    last.unlink()  # as a kill before it leaves them
    again = in_environment("track", "-c", config, "--json")
    assert again.result["sent"] == {"tensorboard": 1}, again.stderr
    found = read_back("tensorboard", folder)
    steps = [step for step, _ in found["scalars"]["step/loss"]]
    assert steps == list(range(sum(one.steps for one in trained if one is not None)))
    assert graded is not None
    assert found["scalars"]["round/accuracy"][-1] == [1, pytest.approx(graded.accuracy)]
    assert [r for r, _ in found["scalars"]["round/train/loss"]] == [0, 1]
    assert (
        len(found["texts"]["samples"]) == 2 and "opd.fingerprint" in found["texts"]["settings"][0]
    )
    assert "<table" not in found["texts"]["samples"][0]
