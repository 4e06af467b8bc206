"""Stages on vLLM: killed and taken up again, they end as quiet ones do."""

import json
import shutil
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.__main__ import main as benchmark
from pipeline.engines.vllm.host import OWN_PROCESS
from pipeline.store.storage import Storage
from schemas.errors import CapacityError
from tests.support.children import signalled_at_commit
from tests.support.runs import Cli, children_killed, finish, keys_below, snapshot, start_function
from tests.support.tiny import write_run
from tests.system.test_benchmarks import check_record

ENGINES = {f"{section}.engine": "vllm" for section in ("eval", "rollout", "score")}
SAMPLES = {"rollout.sample": 3, "score.sample": 3}


def test_the_benchmark_of_engines_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(["engines", "--quick", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["quick"]
    check_record(record, "engines")


def test_a_run_survives_kills_and_ends_with_the_manifests_of_a_quiet_one(
    tmp_path: Path, cli: Cli
) -> None:
    quiet, other = tmp_path / "quiet", tmp_path / "killed"
    one_round = {**ENGINES, **SAMPLES, "run.rounds": 1, "eval.teachers": False}
    write_run(quiet, changes=one_round)
    shutil.copytree(quiet, other)
    killed = write_run(other, changes={**ENGINES, **SAMPLES, "run.rounds": 1, "eval": None})
    cli.ok("run", "-c", quiet / "run.toml")
    storage, round_ = Storage(str(other / "store")), "runs/tiny/rounds/0000"
    cli.ok("rollout", "-c", killed, "--round", "0")
    place, words = f"{round_}/score/main", ("score", "-c", str(killed), "--round", "0")
    process = start_function(
        signalled_at_commit, signal.SIGSTOP, place, *words, env={OWN_PROCESS: "1"}
    )
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None
        time.sleep(0.05)
    engine = psutil.Process(process.pid).children(recursive=True)
    process.kill()  # alone: what it started must end by itself
    finish(process)
    assert engine and not psutil.wait_procs(engine, timeout=120)[1]
    cli.ok("run", "-c", killed)
    mine, theirs = (snapshot(Storage(str(f / "store")), round_) for f in (other, quiet))
    for stage in ("rollout", "score/main"):
        assert mine[f"{round_}/{stage}/manifest.json"] == theirs[f"{round_}/{stage}/manifest.json"]

    before = snapshot(storage, "runs/tiny")
    again = cli.ok("run", "-c", killed)
    assert again["units"] == 0 and snapshot(storage, "runs/tiny") == before
    changes = ["--set", "run.name=other", "--set", "loss.kind=reverse_kl"]
    cli.ok("rollout", "-c", killed, "--round", "0", *changes)
    scored = cli.ok("score", "-c", killed, "--round", "0", *changes)
    assert scored["teacher_tokens"] == 0 and scored["reused_rows"] == scored["rows"] > 0


def test_a_process_of_vllm_that_is_killed_ends_the_stage_and_the_same_command_goes_on(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"score.engine": "vllm", "score.batch_tokens": 64, "eval": None}  # less is not tried
    config = write_run(tmp_path, changes=changes)
    storage, folder = Storage(str(tmp_path / "store")), "runs/tiny/rounds/0000/score/main/commits"
    rollout = cli.ok("rollout", "-c", config, "--round", "0")
    with monkeypatch.context() as patch, children_killed(folder) as killed:
        patch.setenv(OWN_PROCESS, "1")
        outcome = cli("score", "-c", config, "--round", "0", "--json")
    assert killed and outcome.code == CapacityError.exit_code == 7
    assert "vLLM's engine process ended on its own" in outcome.result["error"]
    before = {key: storage.get(key) for key in keys_below(storage, folder)}
    assert len(before) == 1

    again = cli.ok("score", "-c", config, "--round", "0")
    assert (again["units"], again["rows"]) == (3, rollout["rows"])
    after = {key: storage.get(key) for key in keys_below(storage, folder)}
    assert len(after) == 4 and before.items() <= after.items()
    (first,) = (json.loads(data or b"")["teacher_tokens"] for data in before.values())
    manifest = json.loads(storage.get(folder.replace("commits", "manifest.json")) or b"")
    assert manifest["teacher_tokens"] == again["teacher_tokens"] + first > first > 0
    assert manifest["teacher_tokens"] - rollout["tokens"] == prompt_tokens(storage)


def prompt_tokens(storage: Storage) -> int:
    """Return the prompt tokens of the first round's rows, which a teacher reads once."""
    data = storage.get("runs/tiny/rounds/0000/rollout/manifest.json") or b""
    keys = [unit["shard"]["key"] for unit in json.loads(data)["units"]]
    tables = [pq.read_table(storage.local_root / key) for key in keys if storage.local_root]
    return sum(len(ids) for table in tables for ids in table["prompt_ids"].to_pylist())
