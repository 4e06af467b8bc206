"""Records: the first one stands, and a damaged one is named."""

import pytest

from pipeline.store.commit import read_commit
from pipeline.store.records import create_record, find_record, read_record
from pipeline.store.storage import Storage
from schemas.errors import DataError
from schemas.keys import commit_key
from schemas.records.shards import Commit, Shard
from schemas.records.units import UnitShard

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
