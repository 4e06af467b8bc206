"""Scoring under chaos: workers and the store die at random, and every request may fail.

Three real `opd score` processes share a round on a real S3 server, behind a proxy that injects
faults, while a reader reads whatever is committed.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.learner.feed.data import RoundData
from pipeline.runs.configsource import load_config
from pipeline.runs.run import open_run
from tests.conftest import UseS3
from tests.support.faults import STORM, FaultProxy
from tests.support.runs import Cli, finish, start
from tests.support.servers import S3Account, SeaweedServer
from tests.support.tiny import write_run
from tests.support.warm import Process

UNITS = 40
WORKERS = 3
KILLS = 6
SERVER_KILLS = (10, 25)
"""Numbers of committed units at which the server is killed."""
MIX = {fault: share / 2 for fault, share in STORM.items()}
SCORE = "runs/tiny/rounds/0000/score/main"
CHANGES = {
    "rollout.prompts_per_round": UNITS,
    "rollout.prompts_per_unit": 1,
    "rollout.samples_per_prompt": 1,
    "eval": None,
    "storage.lease_s": 5.0,
    "storage.read_timeout_s": 5.0,
}


@dataclass
class Reader:
    """Reads everything that is committed, again and again, past the proxy."""

    account: S3Account
    root: str
    units: set[str] = field(default_factory=set)
    torn: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Read until told to stop; a server that is down is asked again."""
        client = None
        while not self.done.wait(0.2):
            try:
                client = client or self.account.client(read_timeout_s=2.0)
                self._read_commits(client)
            except Exception:  # the server is dead, or starts at another port
                client = None

    def _read_commits(self, client: Any) -> None:
        prefix = self.root.removeprefix("s3://")
        for name in client.ls(f"{prefix}/{SCORE}/commits", detail=False):
            if name in self.units:
                continue
            shard = json.loads(client.cat_file(name))["shard"]
            data = client.cat_file(f"{prefix}/{shard['key']}")
            if hashlib.sha256(data).hexdigest() != shard["sha256"]:
                self.torn.append(name)
            self.units.add(name)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[SeaweedServer]:
    server = SeaweedServer(tmp_path / "seaweed")
    server.start()
    yield server
    server.kill()


@pytest.mark.s3
@pytest.mark.slow
def test_three_workers_finish_a_round_whatever_dies(
    tmp_path: Path, own_server: SeaweedServer, use_s3: UseS3, cli: Cli
) -> None:
    root = use_s3(own_server.account)
    config = write_run(tmp_path / "run", root=root, changes=CHANGES)
    cli.ok("rollout", "-c", config, "--round", "0")
    proxy = FaultProxy(own_server.endpoint, mix=MIX, seed=1)
    reader = Reader(own_server.account, root)
    watcher = threading.Thread(target=reader.read)
    watcher.start()
    try:
        kills = score_in_chaos(config, own_server, proxy, reader)
    finally:
        reader.done.set()
        watcher.join()
        proxy.close()

    assert kills >= KILLS
    assert not reader.torn
    assert sum(count for fault, count in proxy.counts.items() if fault != "none") > 100
    run = open_run(load_config(config, ()))
    assert run.storage.names(f"{SCORE}/commits") == {f"u{unit:05d}.json" for unit in range(UNITS)}
    rollout, manifest = run.rollout(0), run.score(0, "main")
    assert rollout is not None
    assert manifest is not None
    assert (len(manifest.units), manifest.rows) == (UNITS, UNITS)
    data = RoundData(run.storage, rollout, {"main": manifest}, keep=2)
    lengths = data.read_lengths(oldest_round=0)
    every_row = data.batch(lengths.fresh_R.nonzero()[0])  # each aligned with its own, or refused
    assert len(every_row.id_rows()) == UNITS
    assert not run.storage.create(f"{SCORE}/manifest.json", b"another")
    assert cli.ok("score", "-c", config, "--round", "0")["teacher_tokens"] == 0


def score_in_chaos(config: Path, server: SeaweedServer, proxy: FaultProxy, reader: Reader) -> int:
    """Score round 0 with workers that are killed at random; return how often that was done."""
    env = server.account.at(proxy.endpoint).environ()

    def worker() -> Process:
        return start("score", "-c", config, "--round", "0", "--json", env=env)

    chance, kills, pending = random.Random(0), 0, list(SERVER_KILLS)
    workers = [worker() for _ in range(WORKERS)]
    deadline = time.monotonic() + 400
    while any(w.poll() != 0 for w in workers):
        assert time.monotonic() < deadline, f"{len(reader.units)} of {UNITS} units are committed"
        time.sleep(chance.uniform(0.3, 1.2))
        if pending and len(reader.units) >= pending[0]:
            pending.pop(0)
            server.kill()
            time.sleep(1.0)
            server.start()
            proxy.upstream = ("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
            reader.account = server.account
        alive = [w for w in workers if w.poll() is None]
        if kills < KILLS and alive and reader.units:
            chance.choice(alive).kill()
            kills += 1
        for index, one in enumerate(workers):
            if one.poll():
                outcome = finish(one)
                assert outcome.code < 0, f"a worker failed by itself: {outcome.stderr}"
                workers[index] = worker()
    assert not pending
    return kills
