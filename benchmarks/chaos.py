"""`chaos`: runs of quickstart's size on S3 while everything dies and every request may fail.

Two `opd run` share a run, of one learner process or of two, behind a proxy that injects faults;
beside them the cache is verified, cleaned, merged, reprocessed and looked at. Processes, their
children and the S3 server are killed at random moments; at the end of each run every promise is
checked. It needs what the tests need.
"""

import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kit.mayhem import Command, Mayhem
from benchmarks.kit.measure import Result, spread
from benchmarks.kit.promises import broken_promises
from pipeline.quickstart.addition import distinct
from pipeline.store.storage import Storage
from tests.support.faults import NONE, STORM, FaultProxy
from tests.support.runs import finish, snapshot, start
from tests.support.servers import BUCKET, SeaweedServer
from tests.support.tiny import make_model, write_run


@dataclass(frozen=True)
class Size:
    """How much one run has to do, and how often it is struck."""

    prompts: int
    unit: int
    rounds: int
    blows: int


FULL, QUICK = Size(1280, 64, 2, 180), Size(32, 8, 1, 6)
MINUTES = 30.0
RANKS = (1, 2)
"""Processes of the learner, one number after the other, run by run."""
FAULTS = {fault: share / 2 for fault, share in STORM.items()}
"""Share of the requests that each fault meets."""


def run(*, quick: bool, seed: int, minutes: float | None = None) -> Result:
    """Disturb runs until the time is over; return the counts, and each promise that was broken."""
    size, chance = QUICK if quick else FULL, random.Random(seed)
    end = time.monotonic() + 60 * (0.0 if quick else minutes or MINUTES)
    failures, trials = list[str](), list[tuple[Counter[str], float]]()
    with _surroundings_kept(), tempfile.TemporaryDirectory(prefix="opd-chaos-") as name:
        field = _prepare(Path(name), size)
        server = SeaweedServer(field.folder / "seaweed")
        server.start()
        try:
            while not trials or time.monotonic() < end:
                begin = time.monotonic()
                ranks = RANKS[len(trials) % len(RANKS)]
                counts, found = _trial(field, server, size, ranks, chance)
                trials.append((counts, time.monotonic() - begin))
                failures += found
                print(f"run {len(trials)}: {_told(counts)}", *found, sep="\n", file=sys.stderr)
        finally:
            server.kill()
    return _result(trials, failures)


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Give variables and the folder for temporary files back at the end of a block."""
    environ, folder = dict(os.environ), tempfile.tempdir
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        tempfile.tempdir = folder


def _result(trials: Sequence[tuple[Counter[str], float]], failures: list[str]) -> Result:
    total = sum((counts for counts, _ in trials), Counter[str]())
    kinds = {"signals": "SIG", "faults_by_kind": "fault ", "exits": "exit "}
    return Result(
        {
            "kills": _kills(total),
            "faults": _faults(total),
            "requests": _with(total, "fault ").total(),
            "starts": total["starts"],
            "runs": len(trials),
        },
        [
            {
                "case": "run",
                "kills": spread([_kills(counts) for counts, _ in trials]),
                "faults": spread([_faults(counts) for counts, _ in trials]),
                "wall_s": spread([wall_s for _, wall_s in trials]),
            }
        ],
        {"counts": {kind: dict(_with(total, start)) for kind, start in kinds.items()}},
        {"failures": failures},
    )


@dataclass(frozen=True)
class Field:
    """The folder of all runs, and what a quiet run publishes, by ranks of the learner."""

    folder: Path
    quiet: dict[int, dict[str, Any]]
    scorer: str
    """Key of the scorer that all runs share."""


def _prepare(folder: Path, size: Size) -> Field:
    """Make models, prompts and quiet runs; every temporary folder is below the folder."""
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    for name, teacher in (("student", False), ("main", True)):
        make_model(folder / name, hidden=64, seed=int(teacher), teacher=teacher)
    for name, held_out, count in (("prompts", False, size.prompts), ("held-out", True, 64)):
        rows = distinct(count, 5, held_out=held_out)
        lines = (json.dumps({"prompt": row.prompt, "reference": row.answer}) for row in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    quiet = dict[int, dict[str, Any]]()
    for ranks in RANKS:
        root = str(folder / f"quiet-{ranks}")
        config = _config(folder, root, size, ranks)
        _finished("run", "-c", str(config), "--json")
        quiet[ranks] = snapshot(Storage(root), "runs")
    (scorer,) = Storage(root).folders("cache")
    return Field(folder, quiet, scorer)


def _config(folder: Path, root: str, size: Size, ranks: int) -> Path:
    changes: dict[str, object] = {
        "train.num_processes": ranks,
        "run.rounds": size.rounds,
        "rollout.prompts_per_round": size.prompts,
        "rollout.prompts_per_unit": size.unit,
        "train.sequences_per_step": max(8, size.prompts // 40),
        "train.micro_batch_tokens": 4096,
        "train.save_steps": 4,
        "storage.lease_s": 2.0,
        "storage.retry_s": 20.0,
        "storage.read_timeout_s": 5.0,
        "storage.connect_timeout_s": 2.0,
    }
    for stage in ("rollout", "score", "eval"):
        changes[f"{stage}.batch_tokens"] = 8192
    return write_run(folder, root=root, changes=changes)


def _trial(
    field: Field, server: SeaweedServer, size: Size, ranks: int, chance: random.Random
) -> tuple[Counter[str], list[str]]:
    """Disturb one run until it has ended by itself; return counts and broken promises."""
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    config = _config(field.folder, root, size, ranks)
    line = ["run", "-c", str(config), "--json"]
    os.environ.update(server.account.environ())  # this process looks past the proxy
    proxy = FaultProxy(server.endpoint, mix=FAULTS, seed=chance.randrange(1 << 30))
    scorers = partial(Storage(root).folders, "cache")
    mayhem = Mayhem(
        commands=[
            Command("run", [line]),
            Command("run beside", [line]),
            Command(
                "upkeep",
                _upkeep(config, root, field.scorer),
                endless=True,
                ready=lambda: bool(scorers()),
            ),
        ],
        server=server,
        proxy=proxy,
        environ=server.account.at(proxy.endpoint).environ(),
        chance=chance,
    )
    try:
        mayhem.run(size.blows)
    finally:
        proxy.close()
    found = broken_promises(
        Storage(root),
        field.quiet[ranks],
        done_again=lambda: _finished("run", "-c", str(config), "--json"),
        scratch=field.folder / "tmp",
    )
    counts = mayhem.counts + Counter({f"fault {f}": n for f, n in proxy.counts.items()})
    texts = [f"{promise}: {text}" for promise, wrong in found.items() for text in wrong]
    return counts, [*mayhem.wrong, *texts]


def _upkeep(config: Path, root: str, scorer: str) -> Sequence[Sequence[str]]:
    """Return what is done with a root beside its runs, one of them at a time."""
    here = ["-c", str(config)]
    return (
        ["cache", "verify", *here],
        ["cache", "gc", *here, "--delete", "--unused-scorers", "--older-than", "0.002"],
        ["cache", "merge", "--from-root", root, "--root", f"{root}-copy"],
        ["cache", "reindex", *here],
        ["cache", "reprocess", *here, "--from", scorer, "--to", "small", "--k", "2"],
        ["cache", "ls", *here],
        ["status", "-c", str(config)],
    )


def _finished(*arguments: str) -> dict[str, Any]:
    """Return what an undisturbed command printed."""
    outcome = finish(start(*arguments))
    if outcome.code != 0:
        raise RuntimeError(f"opd {' '.join(arguments)} ended with {outcome.code}: {outcome.stderr}")
    return outcome.result


def _with(counts: Counter[str], start: str) -> Counter[str]:
    """Return the counts whose names begin so, under the rest of the name."""
    kept = {name: n for name, n in counts.items() if start in name}
    return Counter(
        {name.removeprefix(start) if start[-1] == " " else name: n for name, n in kept.items()}
    )


def _kills(counts: Counter[str]) -> int:
    return counts["SIGKILL"] + counts["server SIGKILL"]


def _faults(counts: Counter[str]) -> int:
    return _with(counts, "fault ").total() - counts[f"fault {NONE}"]


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
