"""A live scheduler: Params by REST, killed processes and workers, clears, two runs at once."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.airflow.test_airflow_rounds import rootless
from tests.support.airflowhost import (
    OPD,
    PATIENCE_S,
    AirflowHome,
    LiveAirflow,
    airflow_bin,
    find_chromium,
)
from tests.support.repository import REPOSITORY
from tests.support.runs import Cli, snapshot
from tests.support.tiny import make_model, write_run

pytestmark = pytest.mark.slow
DAG = "opd_rounds"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, warm_opd: str) -> Iterator[LiveAirflow]:
    """Return a running Airflow; what its tasks start to score, which is killed, is `opd` itself."""
    settings = "configs = ['/']\nrounds = 1\nretries = 3\nretry_delay_s = 0\nstop_s = 20\n"
    settings += '[kinds.score]\npool = "teachers"\n'
    folder = tmp_path_factory.mktemp("live")
    opd = folder / "opd"
    opd.write_text(f'#!/bin/sh\n[ "$1" = score ] && exec {OPD} "$@"\nexec {warm_opd} "$@"\n')
    opd.chmod(0o755)
    home = AirflowHome(folder, settings, str(opd)).prepare()
    airflow = LiveAirflow(home)
    try:
        made = airflow.post("pools", {"name": "teachers", "slots": 2})
        assert made["slots"] == 2
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the TOML of a run whose teacher takes long enough to be killed at work."""
    folder = tmp_path_factory.mktemp("run")
    make_model(folder / "main", hidden=512, layers=12, seed=5)
    changes = {"run.rounds": 1, "rollout.prompts_per_round": 24, "rollout.prompts_per_unit": 1}
    return write_run(folder, changes=changes)


def commits(config: Path) -> set[str]:
    """Return the committed units of round 0's scores."""
    folder = config.parent / "store" / "runs" / "tiny" / "rounds" / "0000" / "score" / "main"
    return {path.name for path in (folder / "commits").glob("*.json")}


def kill_one_that_scores(
    config: Path, *, after: int, but: int | None = None, supervisor: bool = False
) -> int:
    """Kill a process that scores once so many units are committed; return its number.

    Args:
        config: the TOML that it scores by.
        after: units of the round.
        but: a process to leave alone.
        supervisor: kill the executor's worker instead, which supervises the task that runs it.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            scores = "score" in words and str(config) in words and process.pid != but
            if not scores or len(commits(config)) < after:
                continue
            with suppress(psutil.NoSuchProcess, IndexError):  # it has just ended by itself
                victim = process.parents()[1] if supervisor else process
                victim.kill()
                return int(process.pid)
        time.sleep(0.005)
    raise AssertionError("no process scored")


def everything(config: Path) -> dict[str, int]:
    """Return when each object of the root was written."""
    root = config.parent / "store"
    return {str(p): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def survived(live: LiveAirflow, config: Path) -> dict[str, dict[str, Any]]:
    """Return the tasks of two runs of one TOML at once, with a process and a worker killed."""
    for run, workers in (("first", 2), ("second", 1)):
        conf = {"config": str(config), "workers": workers}
        assert live.trigger(DAG, run, conf)["state"] == "queued"
    killed = kill_one_that_scores(config, after=1)
    kill_one_that_scores(config, after=2, but=killed, supervisor=True)
    assert [live.finished(DAG, run) for run in ("first", "second")] == ["success", "success"]
    return {run: live.tasks(DAG, run) for run in ("first", "second")}


def test_killed_processes_and_workers_are_tried_again_and_nothing_is_scored_twice(
    survived: dict[str, dict[str, Any]], config: Path, tmp_path: Path, cli: Cli
) -> None:
    tries = [
        task["try_number"]
        for tasks in survived.values()
        for name, task in tasks.items()
        if ".score[" in name
    ]
    assert len(tries) == 3 and sum(tries) >= 5, tries
    pools = {name: task["pool"] for name, task in survived["first"].items()}
    assert pools["round_0.score[1]"] == "teachers" and pools["round_0.train[-1]"] == "default_pool"
    run = open_run(load_config(config))
    assert len(commits(config)) == 24
    scorers = list((config.parent / "store" / "cache").iterdir())
    assert len(scorers) == 1 and len(list((scorers[0] / "commits").glob("*.json"))) == 24
    other = write_run(
        config.parent,
        root=str(tmp_path / "alone"),
        changes={
            "run.rounds": 1,
            "rollout.prompts_per_round": 24,
            "rollout.prompts_per_unit": 1,
        },
        file="alone.toml",
    )
    cli.ok("run", "-c", other)
    expected = snapshot(open_run(load_config(other)).storage, "runs/tiny")
    assert rootless(snapshot(run.storage, "runs/tiny")) == rootless(expected)


def test_a_killed_process_is_told_in_the_log(
    survived: dict[str, dict[str, Any]], live: LiveAirflow
) -> None:
    told = ""
    for run, tasks in survived.items():
        for task in tasks.values():
            if task["task_id"].endswith(".score") and task["try_number"] > 1:
                told += live.log(DAG, run, task["task_id"], 1, task["map_index"])
    assert "opd was killed by SIGKILL" in told


def test_a_cleared_task_and_a_cleared_round_compute_nothing(
    survived: dict[str, dict[str, Any]], live: LiveAirflow, config: Path
) -> None:
    before = everything(config)
    assert live.clear(DAG, "second", ["round_0.score"]) == "success"
    assert everything(config) == before
    names = sorted({task["task_id"] for task in survived["second"].values()})
    assert live.clear(DAG, "second", names) == "success"
    assert everything(config) == before
    tasks = live.tasks(DAG, "second")
    assert tasks["round_0.score[0]"]["try_number"] >= 3
    states = {name: task["state"] for name, task in tasks.items()}
    graded = {name: state for name, state in states.items() if "grade" in name}
    assert set(graded.values()) == {"skipped"}  # without a [reward]
    assert {state for name, state in states.items() if name not in graded} == {"success"}


def test_each_checkpoint_is_an_asset(
    survived: dict[str, dict[str, Any]], live: LiveAirflow, config: Path
) -> None:
    events = live.get("assets/events?limit=100")["asset_events"]
    uris = {event["uri"] for event in events}
    assert uris == {f"file://{config.parent}/store/runs/tiny/checkpoints/0001"}
    assert {event["extra"]["round"] for event in events} == {0}
    assert all(event["extra"]["manifest"].endswith("manifest.json") for event in events)


def test_xcom_holds_names_and_counts_alone(
    survived: dict[str, dict[str, Any]], live: LiveAirflow
) -> None:
    for name in ("round_0.plan", "round_0.train", "round_0.gate"):
        found = live.get(f"dags/{DAG}/dagRuns/first/taskInstances/{name}/xcomEntries")
        for entry in found["xcom_entries"]:
            place = f"dags/{DAG}/dagRuns/first/taskInstances/{name}/xcomEntries/{entry['key']}"
            assert len(json.dumps(live.get(place)["value"])) < 2000


def test_a_wrong_param_is_refused_by_rest(live: LiveAirflow, config: Path) -> None:
    for conf in ({}, {"config": str(config), "workers": 0}, {"config": str(config), "rounds": 2}):
        answer = live.trigger(DAG, f"wrong-{len(conf)}", conf)
        assert answer["status"] in (400, 422) and "state" not in answer


def test_the_graph_of_a_run_can_be_looked_at(
    survived: dict[str, dict[str, Any]], live: LiveAirflow, tmp_path: Path
) -> None:
    picture = Path(os.environ.get("OPD_TEST_PICTURE", tmp_path / "graph.png"))
    script = REPOSITORY / "tests" / "support" / "airflowshot.py"
    words = ("python", script, live.url, DAG, "first", picture, find_chromium())
    command = [str(airflow_bin() / words[0]), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=live.home.env)
    assert done.returncode == 0, done.stderr[-3000:]
    nodes = json.loads(done.stdout.splitlines()[-1])
    shown = {text.split("\n")[0]: text for text in nodes}
    assert {"plan", "rollout [2]", "score [2]", "train", "eval", "gate"} <= set(shown)
    assert "skipped" in shown.pop("grade")  # without a [reward]
    assert all("success" in text for text in shown.values())
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
