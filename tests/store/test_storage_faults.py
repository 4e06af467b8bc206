"""Storage over a bad network, and where it is refused: repeated, or one clear error at once."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store.commit import content_shard
from pipeline.store.records import create_record, find_record
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.errors import DataError, StorageError
from schemas.keys import commit_key
from schemas.records.shards import Commit, LeaseRecord
from tests.conftest import QUICK, ProxyFactory, UseS3
from tests.support.faults import (
    CONFLICT,
    EMPTY,
    FLIP,
    HALVE,
    INTERNAL_ERROR,
    NONE,
    OTHER_DIGIT,
    RESET_AFTER,
    RESET_BEFORE,
    SLOW_DOWN,
    STORM,
    TRUNCATE,
)
from tests.support.servers import S3Account, SeaweedServer, free_port

IMPATIENT = StorageSection(retry_s=0.5, connect_timeout_s=0.5, read_timeout_s=2.0)


# --- faults of the network ---


def test_a_lost_reply_to_create_counts_as_created(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    proxy.force(RESET_AFTER, method="PUT")
    assert storage.create("key", b"mine")
    assert proxy.counts[RESET_AFTER] == 1
    assert not storage.create("key", b"theirs")
    assert storage.get("key") == b"mine"


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR, RESET_BEFORE, RESET_AFTER, CONFLICT])
def test_a_passing_fault_of_a_write_is_repeated(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory, fault: str
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    proxy.force(fault, method="PUT", times=2)
    assert storage.create("key", b"data")
    assert proxy.counts[fault] == 2
    assert storage.get("key") == b"data"


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR, RESET_BEFORE, TRUNCATE])
def test_a_passing_fault_of_a_read_is_repeated(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory, fault: str, tmp_path: Path
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    data = os.urandom(1 << 16)
    shard = content_shard("folder", data, rows=1, tokens=1)
    storage.put(shard.key, data)
    proxy.force(fault, method="GET", times=2)
    assert storage.get(shard.key) == data
    proxy.force(fault, method="GET", times=2)
    assert storage.names("folder") == {shard.key.removeprefix("folder/")}
    proxy.force(fault, method="GET", times=2)
    storage.download(shard, tmp_path / "copy")
    assert proxy.counts[fault] == 6


@pytest.mark.parametrize("fault", [FLIP, HALVE, EMPTY])
def test_bytes_that_were_damaged_on_their_way_are_read_again(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory, fault: str, tmp_path: Path
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    data, record = os.urandom(1 << 16), LeaseRecord(owner="me", machine="here", process=1)
    shard = content_shard("folder", data, rows=1, tokens=1)
    storage.put(shard.key, data)
    create_record(storage, "record", record)
    for times in (1, 2):
        proxy.force(fault, method="GET", times=times)
        assert storage.read_shard(shard) == data
        proxy.force(fault, method="GET", times=times)
        assert find_record(storage, "record", LeaseRecord) == record
        proxy.force(fault, method="GET", times=times)
        storage.download(shard, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
    assert proxy.counts[fault] == 9


def test_bytes_that_are_stored_damaged_are_an_error_after_a_second_look(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    storage.put("record", b'{"owner": "me"')
    before = proxy.counts.total()
    with pytest.raises(DataError, match="not a LeaseRecord"):
        find_record(storage, "record", LeaseRecord)
    assert proxy.counts.total() == before + 2


def test_a_number_that_changed_on_its_way_is_read_again_and_not_believed_if_it_stays(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    shard = content_shard("rollouts", b"x", rows=1, tokens=1)
    key = commit_key("runs/a/rounds/0000/rollout", "u00000")
    commit = Commit(unit="u00000", shard=shard, fingerprint="f", attempt="a")
    create_record(storage, key, commit)
    proxy.force(OTHER_DIGIT, method="GET")
    assert find_record(storage, key, Commit) == commit
    proxy.force(OTHER_DIGIT, method="GET", times=2)
    with pytest.raises(DataError, match=r"u00000\.json is not a Commit.*own digest.*Restore it"):
        find_record(storage, key, Commit)
    assert proxy.counts[OTHER_DIGIT] == 3
    assert find_record(storage, key, Commit) == commit


@pytest.mark.s3
def test_a_storm_of_faults_loses_and_tears_nothing(
    s3_server: SeaweedServer, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server.endpoint, STORM, seed=7)
    storage = Storage(use_s3(s3_server.account.at(proxy.endpoint)), QUICK)
    objects = {f"storm/{number:02d}": os.urandom(5000) for number in range(20)}
    with ThreadPoolExecutor(4) as pool:
        created = pool.map(lambda item: storage.create(*item), objects.items())
        assert all(created)
        assert list(pool.map(storage.get, objects)) == list(objects.values())
    assert storage.names("storm") == {key.removeprefix("storm/") for key in objects}
    assert proxy.counts.total() > proxy.counts[NONE] > 0


@pytest.mark.s3
def test_a_killed_server_keeps_what_it_acknowledged(
    s3_server: SeaweedServer, s3_storage: Storage
) -> None:
    for number in range(5):
        s3_storage.put(f"kept/{number}", f"data {number}".encode())
    s3_server.kill()
    s3_server.start()
    assert s3_storage.names("kept") == {"0", "1", "2", "3", "4"}
    assert [s3_storage.get(f"kept/{n}") for n in range(5)] == [
        f"data {n}".encode() for n in range(5)
    ]


# --- refusals ---


def refused_calls(storage: Storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.get("key"),
        lambda: storage.exists("key"),
        lambda: storage.names("folder"),
        lambda: storage.put("key", b"1"),
        lambda: storage.create("key", b"1"),
        lambda: storage.delete("key"),
    ]


@pytest.mark.s3
@pytest.mark.parametrize("keys", [("nobody", "opdtestsecret"), ("opdtest", "wrong")])
def test_wrong_credentials_are_a_storage_error_at_once(
    s3_server: SeaweedServer, use_s3: UseS3, keys: tuple[str, str], sleeps: list[float]
) -> None:
    storage = Storage(use_s3(S3Account(s3_server.endpoint, *keys)), QUICK)
    for call in refused_calls(storage):
        with pytest.raises(StorageError, match="credentials") as caught:
            call()
        assert keys[1] not in str(caught.value)
    assert sleeps == []


def test_absent_credentials_are_a_storage_error_at_once(
    moto_server: S3Account, use_s3: UseS3, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]
) -> None:
    storage = Storage(use_s3(moto_server), QUICK)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in refused_calls(storage):
        with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
            call()
    assert sleeps == []


@pytest.mark.s3
def test_a_read_only_identity_reads_and_cannot_write(
    s3_server: SeaweedServer, s3_storage: Storage, use_s3: UseS3, sleeps: list[float]
) -> None:
    s3_storage.put("folder/key", b"data")
    use_s3(s3_server.reader)
    reader = Storage(s3_storage.root, QUICK)
    assert reader.get("folder/key") == b"data"
    assert reader.names("folder") == {"key"}
    for write in (reader.put, reader.create):
        with pytest.raises(StorageError, match="was refused"):
            write("folder/other", b"1")
    with pytest.raises(StorageError, match="was refused"):
        reader.delete("folder/key")
    assert s3_storage.names("folder") == {"key"}
    assert sleeps == []


def test_an_unreachable_endpoint_is_a_storage_error_that_says_what_to_check(
    use_s3: UseS3,
) -> None:
    storage = Storage(use_s3(S3Account(f"http://127.0.0.1:{free_port()}")), IMPATIENT)
    for call in refused_calls(storage):
        with pytest.raises(StorageError, match=r"failed for 0 s.*AWS_ENDPOINT_URL"):
            call()


@pytest.mark.parametrize("kind", ["moto", pytest.param("seaweed", marks=pytest.mark.s3)])
def test_a_missing_bucket_is_a_storage_error(
    kind: str, request: pytest.FixtureRequest, use_s3: UseS3
) -> None:
    server = request.getfixturevalue({"moto": "moto_server", "seaweed": "s3_server"}[kind])
    account = server if isinstance(server, S3Account) else server.account
    use_s3(account)
    storage = Storage("s3://no-such-bucket-here/prefix", IMPATIENT)
    for write in (storage.put, storage.create):
        with pytest.raises(StorageError, match="no-such-bucket-here"):
            write("key", b"1")


def test_a_file_where_a_folder_should_be_is_a_storage_error(
    tmp_path: Path, sleeps: list[float]
) -> None:
    (tmp_path / "store").write_text("not a folder")
    storage = Storage(str(tmp_path / "store"), QUICK)
    with pytest.raises(StorageError, match="a part of the path is a file"):
        storage.put("folder/key", b"1")
    assert sleeps == []


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses between repetitions, which are not slept."""
    pauses: list[float] = []
    monkeypatch.setattr("pipeline.store.retry.pause", pauses.append)
    return pauses
