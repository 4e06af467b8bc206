"""What is in use: every key that a record of a run, a commit or an index names, and no other."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.index.compaction import compact
from pipeline.cache.index.index import Index
from pipeline.store.storage import Storage
from pipeline.upkeep.references import run_references, scorer_references, used_scorers
from schemas.errors import DataError
from schemas.fingerprint import sha256
from schemas.keys import commit_key
from schemas.records.scores import CacheCommit
from schemas.records.shards import Commit, Shard


def digests_of(unit: int) -> list[str]:
    return [sha256(f"{unit} {row}".encode())[:32] for row in range(2)]


def commit_of(unit: int) -> CacheCommit:
    digest = sha256(f"shard {unit}".encode())
    key = f"cache/s/data/{digest}.parquet"
    return CacheCommit(
        unit=f"u{unit}",
        shard=Shard(key=key, sha256=digest, bytes=1, rows=2, tokens=3),
        fingerprint="s",
        attempt="a",
        paid_by="demo/0000",
        teacher_tokens=0,
        reused_rows=0,
    )


def test_gc_knows_what_a_merged_index_names(local_storage: Storage) -> None:
    index = Index(local_storage, "s")
    for unit in range(3):
        local_storage.put(commit_of(unit).shard.key, b"1")
        index.add(commit_of(unit), digests_of(unit))
    assert compact(local_storage, index, new_units=3)
    for name in local_storage.names("cache/s/commits"):
        local_storage.delete(f"cache/s/commits/{name}")
    pieces = {
        f"cache/s/index/{kind}/{name}"
        for kind in ("parts", "tables")
        for name in local_storage.names(f"cache/s/index/{kind}")
    }
    assert len(pieces) == 2
    shards = {commit_of(unit).shard.key for unit in range(3)}
    assert scorer_references(local_storage, "s") == pieces | shards


@pytest.mark.parametrize("where", ["new", "committed", "both"])
def test_a_shard_is_in_use_from_the_index_or_from_its_commit(memory: Storage, where: str) -> None:
    commit = commit_of(0)
    if where != "committed":
        Index(memory, "s").add(commit, digests_of(0))
    if where == "new":
        memory.delete(commit_key("cache/s", commit.unit))
    else:
        memory.put(commit_key("cache/s", commit.unit), commit.to_bytes())
    assert scorer_references(memory, "s") == {commit.shard.key}


def test_a_damaged_commit_of_a_scorer_ends_the_search(memory: Storage) -> None:
    memory.put(commit_key("cache/s", "u0"), b"{")
    with pytest.raises(DataError, match="u0.json"):
        scorer_references(memory, "s")


JSON = st.recursive(
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from(["runs/x", "cache/s/data/y", "prompts", "other/z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def texts_in(value: Any) -> set[str]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return set().union(*map(texts_in, parts))
    return {value} if isinstance(value, str) else set()


@given(st.lists(JSON, max_size=4))
def test_every_key_in_any_json_object_of_a_run_is_in_use(values: list[Any]) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    for number, value in enumerate(values):
        storage.put(f"runs/r{number % 2}/some/{number}.json", json.dumps(value).encode())
    expected = {t for value in values for t in texts_in(value) if t in ("runs/x", "cache/s/data/y")}
    assert run_references(storage) == expected


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("runs/a/run.json", False),  # beside the folders of a run, nothing names a shard
        ("runs/a/rounds/0000/score/main/manifest.json", True),
        ("runs/a/rounds/0000/score/leases/commits/u.json", True),  # a teacher of that name
        ("runs/a/rounds/0000/score/main/leases/u.json", False),
        ("runs/a/baseline/teacher/leases/manifest.json", True),
        ("runs/a/checkpoints/0001/manifest.json", True),
        ("runs/a/checkpoints/0001/config.json", False),
        ("runs/a/metrics/0000/x.json", False),
        ("runs/a/state/x.json", False),
        ("runs/a/rounds/0000/rollout/plan.txt", False),
    ],
)
def test_records_are_read_and_what_only_looks_like_them_is_not(
    memory: Storage, key: str, read: bool
) -> None:
    memory.put(key, json.dumps({"deep": [{"key": "rollouts/x.parquet"}]}).encode())
    assert run_references(memory) == ({"rollouts/x.parquet"} if read else set())


def test_a_record_of_a_run_that_is_no_json_ends_the_search(memory: Storage) -> None:
    memory.put("runs/a/rounds/0000/rollout/plan.json", b"{torn")
    with pytest.raises(DataError, match=r"plan\.json is not JSON.*nothing may be deleted"):
        run_references(memory)


def test_a_record_whose_key_changed_by_a_letter_ends_the_search(memory: Storage) -> None:
    key, shard = commit_key("runs/a/rounds/0000/rollout", "u"), f"rollouts/{'a' * 64}.parquet"
    named = Shard(key=shard, sha256="a" * 64, bytes=1, rows=1, tokens=1)
    data = Commit(unit="u", shard=named, fingerprint="f", attempt="a").to_bytes()
    memory.put(key, data)
    assert run_references(memory) == {shard}
    memory.put(key, data.replace(shard.encode(), shard.replace("a", "b", 1).encode()))
    with pytest.raises(DataError, match=r"u\.json.*its own digest.*nothing may be deleted"):
        run_references(memory)


def test_a_scorer_is_used_where_any_of_its_objects_is_named() -> None:
    keys = ["cache/a/data/1.parquet", "cache/a/scorer.json", "rollouts/cache/b", "cache/c/x"]
    assert used_scorers(keys) == {"a", "c"}
