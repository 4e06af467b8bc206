"""Rounds of a run: done once, the same by any workers on any store."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.engine import Engine
from pipeline.engines.start import Note
from pipeline.learner.learner import Learner
from pipeline.models import loading
from pipeline.runs.run import Run
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from tests.conftest import UseS3
from tests.support.rounds import ROUND, stages
from tests.support.runs import Cli, snapshot
from tests.support.servers import SeaweedServer
from tests.support.tiny import write_run


def test_every_stage_of_a_finished_run_changes_nothing_when_run_again(
    run_copy: Path, cli: Cli
) -> None:
    storage = Storage(str(run_copy / "store"))
    before = snapshot(storage, "")
    for name in ("rollout", "score", "train", "eval"):
        for index in ("0", "1"):
            result = cli.ok(name, "-c", run_copy / "run.toml", "--round", index)
            assert result["units"] == 0
            assert result["manifest"] is not None
    assert cli.ok("run", "-c", run_copy / "run.toml")["units"] == 0
    assert snapshot(storage, "") == before


def test_a_run_that_began_before_there_were_stop_strings_goes_on_and_gets_none(
    run_copy: Path, cli: Cli
) -> None:
    folder, config = run_copy / "store/runs/tiny", run_copy / "run.toml"
    for record in ("run.json", "rounds/0000/rollout/plan.json"):
        assert "stop_strings" not in (folder / record).read_text()
    assert cli.ok("rollout", "-c", config, "--round", "0")["units"] == 0
    changed = cli("rollout", "-c", config, "--round", "0", "--set", "rollout.stop_strings=['1']")
    assert changed.code == 3
    assert "rollout.stop_strings: the run began with None, now ['1']" in changed.stderr


def test_a_run_without_eval_that_is_done_says_so(tmp_path: Path, cli: Cli) -> None:
    config = write_run(tmp_path, changes={"eval": None, "run.rounds": 1})
    assert cli.ok("run", "-c", config)["units"] > 0
    again = cli.ok("run", "-c", config)
    assert (again["units"], again["tokens"], again["manifest"]) == (0, 0, None)
    assert "nothing is left to do" in cli("run", "-c", config).stdout


def test_rounds_draw_other_samples_and_a_replay_draws_the_same(
    finished_run: Path, tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    stages(cli, config, "rollout")
    mine, theirs = (Storage(str(f / "store")) for f in (tmp_path, finished_run))
    key = f"{ROUND}/rollout/manifest.json"
    assert mine.get(key) == theirs.get(key)
    first = json.loads(theirs.get(key) or b"")
    second = json.loads(theirs.get(key.replace("0000", "0001")) or b"")
    shards = [{u["shard"]["sha256"] for u in m["units"]} for m in (first, second)]
    assert not shards[0] & shards[1]


def test_a_run_that_keeps_its_models_loads_each_once_and_ends_as_one_that_does_not(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, plain, opened = list[str](), Learner.__init__, Scorer.open
    load = loading.load_model

    def opening(self: Scorer, run: Run, note: Note) -> Engine:
        loads.append("teacher")
        return opened(self, run, note)

    def learning(self: Learner, *given: Any) -> None:
        loads.append("learner")
        plain(self, *given)

    def opens(*given: Any, **settings: Any) -> Any:
        loads.append("engine's model")
        return load(*given, **settings)

    monkeypatch.setattr("pipeline.engines.hf.engine.load_model", opens)
    monkeypatch.setattr(Scorer, "open", opening)
    monkeypatch.setattr(Learner, "__init__", learning)
    found, counts = [], []
    for keep in (True, False):
        config = write_run(tmp_path / str(keep), changes={"run.keep_models": keep})
        cli.ok("rollout", "-c", config, "--round", "0")  # so that all models have been admitted
        loads.clear()
        cli.ok("run", "-c", config)
        found.append(snapshot(Storage(str(tmp_path / str(keep) / "store")), ""))
        counts.append([loads.count(name) for name in ("teacher", "learner", "engine's model")])
    assert found[0] == found[1]
    assert counts == [[1, 1, 4], [2, 2, 8]]


def test_workers_split_a_stage_and_the_last_one_writes_the_manifest(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path)
    first = cli.ok("rollout", "-c", config, "--round", "0", "--worker", "0/2")
    assert (first["units"], first["manifest"]) == (2, None)
    early = cli("score", "-c", config, "--round", "0")
    assert early.code == 2
    assert "no finished rollout" in early.stderr
    second = cli.ok("rollout", "-c", config, "--round", "0", "--worker", "1/2")
    assert second["units"] == 2
    assert second["manifest"] is not None


def test_a_changed_setting_is_refused_with_its_name_and_both_values(
    run_copy: Path, cli: Cli
) -> None:
    outcome = cli("rollout", "-c", run_copy / "run.toml", "--round", "0", "--set", "score.k=2")
    assert outcome.code == 3
    assert "score.k: the run began with 4, now 2" in outcome.stderr
    tuned = cli("rollout", "-c", run_copy / "run.toml", "--round", "0", "--set", "score.device=cpu")
    assert tuned.code == 0


OTHERS = ("loss.kind=reverse_kl", "train.learning_rate=0.5", "student.model=teacher", "score.k=2")


@pytest.mark.parametrize("command", ["run", "plan", "gate --round 1", "train --round 1"])
def test_a_finished_run_refuses_other_settings_where_nothing_is_left_to_do(
    command: str, run_copy: Path, cli: Cli
) -> None:
    name, *options = command.split()
    for change in OTHERS:
        outcome = cli(name, *options, "-c", run_copy / "run.toml", "--set", change)
        assert outcome.code == 3 and change.partition("=")[0] in outcome.stderr
        assert "nothing is left" not in outcome.stdout
    assert cli(name, *options, "-c", run_copy / "run.toml", "--set", "score.device=cpu").code == 0


def test_status_shows_a_run_to_other_settings_and_says_that_they_are_others(
    run_copy: Path, cli: Cli
) -> None:
    outcome = cli("status", "-c", run_copy / "run.toml", "--set", OTHERS[0])
    assert outcome.code == 0 and "done" in outcome.stdout
    assert "loss.kind: the run began with" in outcome.stderr
    tuned = cli("status", "-c", run_copy / "run.toml", "--set", "score.device=cpu")
    assert tuned.stderr == ""


@pytest.mark.s3
def test_stages_run_on_s3_and_leave_the_manifests_of_a_local_run(
    tmp_path: Path, finished_run: Path, s3_server: SeaweedServer, use_s3: UseS3, cli: Cli
) -> None:
    root = use_s3(s3_server.account)
    config = write_run(tmp_path, root=root, changes={"train.save_steps": 1})
    stages(cli, config, "rollout", "score", "train", "eval")
    mine = snapshot(Storage(root), ROUND)
    quiet = snapshot(Storage(str(finished_run / "store")), ROUND)
    assert mine == quiet
