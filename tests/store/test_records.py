"""Records: the first one stands, and a damaged one is named."""

import math
from typing import Any

import pytest

from pipeline.store.commit import committed_units, content_shard, publish, read_commit
from pipeline.store.records import create_record, find_record, read_record
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.keys import commit_key, manifest_key
from schemas.records.runs import EvalManifest
from schemas.records.shards import Commit, Shard, UnitShard

FOLDER = "runs/a/rounds/0000/rollout"


def test_a_missing_record_is_none_or_a_data_error(local_storage: Storage) -> None:
    key = commit_key(FOLDER, "7")
    assert find_record(local_storage, key, Commit) is None
    with pytest.raises(DataError, match=r"commits/7\.json is missing: run the stage"):
        read_record(local_storage, key, Commit)


def test_a_damaged_record_is_a_data_error_that_names_it(local_storage: Storage) -> None:
    local_storage.put(commit_key(FOLDER, "7"), b'{"unit":')
    with pytest.raises(DataError, match=r"commits/7\.json is not a Commit"):
        read_commit(local_storage, FOLDER, "7", fingerprint="w")


def test_the_first_record_stands(local_storage: Storage) -> None:
    first, second = (
        UnitShard(unit=unit, shard=Shard(key="k", sha256="0" * 64, bytes=1, rows=1, tokens=1))
        for unit in ("first", "second")
    )
    assert create_record(local_storage, "manifest.json", first) == first
    assert create_record(local_storage, "manifest.json", second) == first


ROUND = "runs/a/rounds/0000/eval"


def graded(**changes: Any) -> EvalManifest:
    """Return the manifest of an evaluation without samples."""
    fields: dict[str, Any] = {
        "run": "a",
        "round": 0,
        "subject": "student",
        "policy_version": "p",
        "fingerprint": "f",
        "units": (),
        "rows": 0,
        "tokens": 0,
        "accuracy": 0.5,
        "standard_error": 0.0,
        "stopped": 1.0,
    }
    return EvalManifest.model_construct(**(fields | {"schema_version": 1} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": math.nan},
        {"standard_error": math.inf},
        {"accuracy": None},
        {"rows": 2**64},
        {"rows": 3},
        {"stopped": 2.0},
        {"policy_version": "\x1b[2J"},
        {"subject": "\ud800"},
    ],
)
def test_what_readers_would_refuse_is_not_written(
    changes: dict[str, Any], local_storage: Storage
) -> None:
    with pytest.raises(DataError):
        create_record(local_storage, manifest_key(ROUND), graded(**changes))
    assert not local_storage.exists(manifest_key(ROUND))
    made = create_record(local_storage, manifest_key(ROUND), graded())
    assert find_record(local_storage, manifest_key(ROUND), EvalManifest) == made


@pytest.mark.parametrize("changes", [{"run": "b"}, {"round": 1}, {"round": None}])
def test_a_record_of_something_else_than_its_key_says_is_neither_written_nor_read(
    changes: dict[str, Any], local_storage: Storage
) -> None:
    key, other = manifest_key(ROUND), graded(**changes)
    with pytest.raises(DataError, match=r"eval/manifest\.json is the evaluation of student"):
        create_record(local_storage, key, other)
    local_storage.put(key, other.to_bytes())
    with pytest.raises(DataError, match="it was copied, renamed or changed. Restore the object"):
        find_record(local_storage, key, EvalManifest)


def test_a_commit_that_is_a_copy_of_another_units_is_refused(local_storage: Storage) -> None:
    shard = content_shard("rollouts", b"x", rows=1, tokens=1)
    publish(local_storage, FOLDER, "u00000", shard=shard, data=b"x", fingerprint="w")
    commit = local_storage.get(commit_key(FOLDER, "u00000")) or b""
    local_storage.put(commit_key(FOLDER, "u00001"), commit)
    assert read_commit(local_storage, FOLDER, "u00000", fingerprint="w").shard == shard
    with pytest.raises(DataError, match=r"u00001\.json is the commit of unit u00000"):
        read_commit(local_storage, FOLDER, "u00001", fingerprint="w")


def test_what_is_no_json_object_beside_commits_is_no_unit(local_storage: Storage) -> None:
    for name in ("u00000.json", ".DS_Store", "u00001.json.bak"):
        local_storage.put(f"{FOLDER}/commits/{name}", b"{}")
    assert committed_units(local_storage, FOLDER) == {"u00000"}
