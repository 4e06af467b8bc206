"""Scores that cannot be used are forgotten, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.teachers.repair import forget_invalid
from schemas.errors import DataError
from tests.support.countedwork import Recorder
from tests.support.forged import forged
from tests.support.rounds import ROUND, score_shards
from tests.support.runs import keys_below

SCORES = f"{ROUND}/score/main"


@pytest.fixture
def run(run_copy: Path) -> Run:
    """Return a finished run, to be damaged."""
    return open_run(load_config(run_copy / "run.toml"))


def everything(run: Run) -> dict[str, bytes | None]:
    """Return every object of a run's store."""
    return {key: run.storage.get(key) for key in keys_below(run.storage, "")}


def gone(run: Run, before: dict[str, bytes | None]) -> set[str]:
    """Return what was deleted since; nothing may be there that was not, or is another."""
    after = everything(run)
    assert after.items() <= before.items()
    return set(before) - set(after)


def units(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run.storage.get(f"{SCORES}/manifest.json") or b"")[
        "units"
    ]
    return found


def cached(run: Run, shard_key: str) -> str:
    """Return the key of the commit under which the cache knows a shard."""
    folder = shard_key.split("/data/")[0] + "/commits"
    keys = [f"{folder}/{name}" for name in run.storage.names(folder)]
    (found,) = [
        k for k in keys if json.loads(run.storage.get(k) or b"")["shard"]["key"] == shard_key
    ]
    return found


def test_whole_scores_are_looked_at_and_stay(run: Run) -> None:
    before, progress = everything(run), Recorder()
    assert forget_invalid(run, 0, "main", progress) == 0
    assert gone(run, before) == set()
    assert progress.started == [("verify main", 4, 0)]
    assert (progress.units, progress.stopped) == (4, 1)


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_a_damaged_unit_is_forgotten_by_the_round_and_by_the_cache(
    run: Run, run_copy: Path, damage: str
) -> None:
    path = score_shards(run_copy)[2]
    unit = units(run)[2]["unit"]
    path.write_bytes(path.read_bytes()[:-9]) if damage == "corrupt" else path.unlink()
    shard = str(path.relative_to(run_copy / "store"))
    before, commit = everything(run), cached(run, shard)
    assert forget_invalid(run, 0, "main", Recorder()) == 1
    entry = commit.replace("/commits/", "/index/new/").removesuffix(".json")
    expected = {f"{SCORES}/manifest.json", f"{SCORES}/commits/{unit}.json", commit, entry}
    assert gone(run, before) == expected & set(before)
    assert forget_invalid(run, 0, "main", Recorder()) == 0  # a unit without a commit is not wrong


@pytest.mark.parametrize("change", ["shard", "fingerprint"])
def test_a_commit_that_names_other_scores_is_forgotten_and_the_cache_is_whole(
    run: Run, change: str
) -> None:
    first, second, *_ = units(run)
    key = f"{SCORES}/commits/{first['unit']}.json"
    wrong = {"shard": second["shard"]} if change == "shard" else {"fingerprint": "0" * 32}
    record = json.loads(run.storage.get(key) or b"")
    run.storage.put(key, forged(record | wrong))
    before = everything(run)
    assert forget_invalid(run, 0, "main", Recorder()) == 1
    assert gone(run, before) == {f"{SCORES}/manifest.json", key}


def test_a_round_that_is_not_sampled_has_nothing_to_forget(run: Run) -> None:
    run.storage.delete(f"{ROUND}/rollout/manifest.json")
    before, progress = everything(run), Recorder()
    assert forget_invalid(run, 0, "main", progress) == 0
    assert gone(run, before) == set() and progress.started == []


@pytest.mark.parametrize("data", [b"{", b"{}", b"[" * 9999])
def test_a_commit_that_cannot_be_read_is_forgotten(run: Run, data: bytes) -> None:
    key = f"{SCORES}/commits/{units(run)[0]['unit']}.json"
    run.storage.put(key, data)
    before = everything(run)
    assert forget_invalid(run, 0, "main", Recorder()) == 1
    assert gone(run, before) == {f"{SCORES}/manifest.json", key}


def test_progress_ends_where_a_rollout_cannot_be_read(run: Run) -> None:
    rollout = run.rollout(0)
    assert rollout is not None
    run.storage.delete(rollout.units[0].shard.key)
    progress = Recorder()
    with pytest.raises(DataError):
        forget_invalid(run, 0, "main", progress)
    assert progress.stopped == 1
