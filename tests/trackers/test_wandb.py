"""W&B offline: its files hold what is stored, once, under one id, whoever sends it."""

from collections import Counter
from pathlib import Path

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.support.trackers import in_environment, read_back


def test_a_run_is_sent_as_it_is_stored_and_goes_on_under_one_id(run_copy: Path) -> None:
    config = run_copy / "run.toml"
    table = '\n[track]\nreport = false\n[track.wandb]\nmode = "offline"\nfolder = "seen"\n'
    config.write_text(config.read_text() + table)
    hidden = run_copy / "store" / "runs" / "tiny" / "rounds" / "0001" / "eval" / "manifest.json"
    graded = hidden.read_bytes()
    hidden.unlink()
    first = in_environment("track", "-c", config, "--json")
    assert first.code == 0, first.stderr
    assert first.result["sent"] == {"wandb": 3}
    hidden.write_bytes(graded)  # the run goes on, and so does its tracker
    again = in_environment("track", "-c", config, "--json")
    assert again.result["sent"] == {"wandb": 1}, again.stderr
    run = open_run(load_config(config))
    found = read_back("wandb", run_copy / "seen")
    trained = [run.train(index) for index in range(2)]
    steps = [row["step"] for row in found["rows"] if "step" in row]
    assert steps == list(range(sum(one.steps for one in trained if one is not None)))
    places = Counter(row["_step"] for row in found["rows"])
    assert set(places.values()) == {1}
    last = run.evaluation(1)
    assert last is not None
    accuracies = [row["round/accuracy"] for row in found["rows"] if "round/accuracy" in row]
    assert accuracies[-1] == last.accuracy
    tables = [row for row in found["rows"] if any(n.startswith("samples") for n in row)]
    assert len(tables) == 2
    assert len(set(found["ids"])) == 1 and found["settings"]["loss.kind"] == run.config.loss.kind
