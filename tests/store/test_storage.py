"""One storage contract over memory, local folders, moto and a real S3 server."""

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from moto.s3.models import s3_backends
from torch.utils.data import DataLoader

from pipeline.store.disk.files import file_sha256
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.errors import ConfigError, DataError
from schemas.records.shards import Shard
from tests.conftest import QUICK
from tests.support.children import Objects, create, write_past_the_limit

RIVALS = 8
MOTO_ACCOUNT = "123456789012"


def shard_of(key: str, data: bytes) -> Shard:
    return Shard(key=key, sha256=sha256(data).hexdigest(), bytes=len(data), rows=1, tokens=1)


def race(storage: Storage, key: str) -> list[bytes]:
    barrier = threading.Barrier(RIVALS)

    def attempt(number: int) -> bytes | None:
        data = f"rival {number}".encode() * 100
        barrier.wait()
        return data if storage.create(key, data) else None

    with ThreadPoolExecutor(RIVALS) as pool:
        return [data for data in pool.map(attempt, range(RIVALS)) if data is not None]


# --- the contract, on every kind of store ---


def test_what_was_put_is_read_back_byte_for_byte(storage: Storage) -> None:
    for number, data in enumerate([b"", b"x", bytes(range(256)) * 4096]):
        storage.put(f"folder/{number}", data)
        assert storage.get(f"folder/{number}") == data


def test_an_absent_object_is_none_and_does_not_exist(storage: Storage) -> None:
    assert storage.get("nowhere/at/all") is None
    assert not storage.exists("nowhere/at/all")
    storage.put("somewhere", b"1")
    assert storage.exists("somewhere")


def test_create_is_refused_where_other_bytes_stand(storage: Storage) -> None:
    assert storage.create("one/key", b"first")
    assert not storage.create("one/key", b"second")
    assert storage.get("one/key") == b"first"


def test_create_of_equal_bytes_counts_as_created(storage: Storage) -> None:
    assert storage.create("key", b"same")
    assert storage.create("key", b"same")


def test_create_has_one_winner_among_threads(storage: Storage) -> None:
    winners = race(storage, "race")
    assert len(winners) == 1
    assert storage.get("race") == winners[0]


@pytest.mark.parametrize(
    "kind", ["local_storage", pytest.param("s3_storage", marks=pytest.mark.s3)]
)
def test_create_has_one_winner_among_processes(kind: str, request: pytest.FixtureRequest) -> None:
    storage = request.getfixturevalue(kind)
    with multiprocessing.get_context("fork").Pool(RIVALS) as pool:
        tasks = [(storage, "race", f"process {number}".encode()) for number in range(RIVALS)]
        won = pool.starmap(create, tasks, chunksize=1)
    assert won.count(True) == 1
    assert storage.get("race") == f"process {won.index(True)}".encode()


def test_put_replaces_and_delete_removes(storage: Storage) -> None:
    storage.put("key", b"old")
    storage.put("key", b"new")
    assert storage.get("key") == b"new"
    storage.delete("key")
    storage.delete("key")
    assert storage.get("key") is None


def test_names_are_the_objects_directly_in_a_folder(storage: Storage) -> None:
    assert storage.names("folder") == set()
    for key in ("folder/a.json", "folder/b.json", "folder/deeper/c.json", "folder2/d.json"):
        storage.put(key, b"1")
    assert storage.names("folder") == {"a.json", "b.json"}


def test_folders_are_those_directly_in_a_folder(storage: Storage) -> None:
    assert storage.folders("folder") == set()
    for key in ("folder/a.json", "folder/b/c.json", "folder/b/d/e.json", "folder/f/g", "folder2/h"):
        storage.put(key, b"1")
    assert storage.folders("folder") == {"b", "f"}
    assert storage.folders("folder/b") == {"d"}
    assert storage.folders("folder/b/d") == set()
    assert storage.folders("") == {"folder", "folder2"}
    storage.put("folder/new/x", b"1")
    assert storage.folders("folder") == {"b", "f", "new"}  # never from a cache


def test_a_version_says_how_long_the_object_is(storage: Storage) -> None:
    storage.put("object", b"12345")
    version = storage.version("object")
    assert version is not None
    assert version.num_bytes == 5


def test_a_listing_is_fresh(storage: Storage) -> None:
    other = Storage(storage.root, QUICK)
    for number in range(3):
        assert len(other.names("fresh")) == number
        storage.put(f"fresh/{number}", b"1")
    storage.delete("fresh/0")
    assert other.names("fresh") == {"1", "2"}
    assert not other.exists("fresh/0")


def test_a_listing_of_several_pages_is_complete(moto_storage: Storage) -> None:
    bucket, prefix = moto_storage.root.removeprefix("s3://").split("/")
    for number in range(1005):  # put into moto's memory: 1,005 requests would take long
        s3_backends[MOTO_ACCOUNT]["aws"].put_object(bucket, f"{prefix}/many/{number}", b"")
    assert moto_storage.names("many") == {str(number) for number in range(1005)}


def test_a_file_travels_up_and_down_verified(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(os.urandom(3 << 20))
    shard = storage.upload("checkpoint/weights", source)
    assert (shard.bytes, shard.sha256) == (3 << 20, file_sha256(source))
    storage.download(shard, target)
    assert target.read_bytes() == source.read_bytes()


def test_a_whole_shard_is_returned(storage: Storage) -> None:
    storage.put("data/s.parquet", b"payload")
    assert storage.read_shard(shard_of("data/s.parquet", b"payload")) == b"payload"


def test_a_corrupt_shard_is_a_data_error_that_names_it(storage: Storage, tmp_path: Path) -> None:
    shard = shard_of("data/s.parquet", b"payload")
    for damage in (b"payloaX", b"pay", b"payload and more", b""):
        storage.put("data/s.parquet", damage)
        with pytest.raises(DataError, match=r"data/s\.parquet is corrupt.* expected 7 bytes"):
            storage.read_shard(shard)
        with pytest.raises(DataError, match=r"data/s\.parquet is corrupt"):
            storage.download(shard, tmp_path / "copy")


def test_a_missing_shard_is_a_data_error_that_names_it(storage: Storage, tmp_path: Path) -> None:
    shard = shard_of("data/gone.parquet", b"payload")
    with pytest.raises(DataError, match=r"data/gone\.parquet is missing"):
        storage.read_shard(shard)
    with pytest.raises(DataError, match=r"data/gone\.parquet is missing"):
        storage.download(shard, tmp_path / "copy")


def test_messages_name_the_object_by_its_full_url(storage: Storage) -> None:
    assert storage.url("a/b") == f"{storage.root}/a/b"


# --- roots ---


def test_a_path_and_a_file_url_are_the_same_root(tmp_path: Path) -> None:
    Storage(str(tmp_path)).put("key", b"1")
    by_url = Storage(f"file://{tmp_path}/")
    assert by_url.get("key") == b"1"
    assert by_url.local_root == Storage(str(tmp_path)).local_root == tmp_path.resolve()


def test_only_a_local_root_has_a_folder() -> None:
    assert Storage("memory://x").local_root is None


@pytest.mark.parametrize("root", ["gs://bucket/x", "http://host/x", "s3:///prefix"])
def test_an_unsupported_root_is_a_config_error(root: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        Storage(root)


def test_local_names_leave_out_unfinished_files(local_storage: Storage) -> None:
    local_storage.put("folder/whole", b"1")
    assert local_storage.local_root is not None
    (local_storage.local_root / "folder" / ".tmp-torn").write_bytes(b"half")
    assert local_storage.names("folder") == {"whole"}


# --- other processes ---


def test_storage_pickles_without_its_connections(storage: Storage) -> None:
    storage.put("key", b"before")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.root == storage.root
    assert copy.get("key") == b"before"


@pytest.mark.s3
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_loader_workers_read_s3(s3_storage: Storage, method: str, workers: int) -> None:
    expected = [f"item {number}".encode() for number in range(8)]
    for number, data in enumerate(expected):
        s3_storage.put(f"item/{number}", data)  # the parent's connection is open from here on
    loader = DataLoader(
        Objects(s3_storage, 8),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method,
    )
    assert list(loader) == expected
    assert s3_storage.get("item/0") == expected[0]


@pytest.mark.s3
def test_a_forked_reader_leaves_the_connection_of_its_parent_alone(s3_storage: Storage) -> None:
    one_try = StorageSection(retry_s=0.001, read_timeout_s=5.0)
    storage = Storage(s3_storage.root, one_try)
    storage.put("item/0", b"data")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=storage.get, args=("item/0",)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert storage.get("item/0") == b"data"  # by its first request: no patience for another


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(local_storage: Storage) -> None:
    local_storage.put("folder/small", b"1")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        message = pool.apply(write_past_the_limit, (local_storage,))
    assert "larger than the file system or a limit allows" in message
    assert "folder/large" in message
    assert local_storage.local_root is not None
    assert os.listdir(local_storage.local_root / "folder") == ["small"]


# --- conditional replacement ---


def test_an_object_is_replaced_only_where_it_is_still_of_its_version(storage: Storage) -> None:
    assert storage.version("lease") is None
    storage.create("lease", b"first")
    old = storage.version("lease")
    assert old is not None
    assert -2 < old.age_s < 60
    assert storage.replace("lease", b"second", old)
    assert storage.get("lease") == b"second"
    assert not storage.replace("lease", b"third", old)
    assert storage.get("lease") == b"second"
    new = storage.version("lease")
    assert new is not None
    assert new.tag != old.tag
    storage.delete("lease")
    assert not storage.replace("lease", b"fourth", new)
    assert storage.get("lease") is None


def test_of_many_that_replace_one_version_one_wins(storage: Storage) -> None:
    storage.create("lease", b"held")
    version = storage.version("lease")
    assert version is not None
    barrier = threading.Barrier(RIVALS)

    def attempt(number: int) -> bool:
        barrier.wait()
        return storage.replace("lease", f"rival {number}".encode(), version)

    with ThreadPoolExecutor(RIVALS) as pool:
        assert sum(pool.map(attempt, range(RIVALS))) == 1


def test_pieces_of_objects_are_read_in_order(storage: Storage) -> None:
    storage.put("a", bytes(range(100)))
    storage.put("b", bytes(range(100, 200)))
    ranges = [("a", 0, 3), ("a", 90, 100), ("b", 1, 2), ("a", 7, 8)]
    expected = [bytes(range(3)), bytes(range(90, 100)), bytes([101]), bytes([7])]
    assert storage.read_ranges(ranges) == expected
    assert storage.read_ranges([]) == []
    assert storage.read_ranges([("a", 0, 3), ("gone", 0, 3)]) is None
