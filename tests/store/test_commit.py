"""The commit rule: one commit per unit, and quiet losers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.store.commit import committed_units, content_shard, publish, read_commit
from pipeline.store.storage import Storage
from schemas.errors import IdentityError
from schemas.records.shards import Commit
from tests.conftest import QUICK, ProxyFactory, UseS3
from tests.support.faults import RESET_AFTER, STORM
from tests.support.servers import S3Account, SeaweedServer

FOLDER = "runs/a/rounds/0000/rollout"


def publish_bytes(storage: Storage, data: bytes, *, unit: str = "00001", work: str = "w") -> Commit:
    shard = content_shard("rollouts", data, rows=1, tokens=3)
    return publish(storage, FOLDER, unit, shard=shard, data=data, fingerprint=work)


def test_a_shard_is_named_after_its_content() -> None:
    shard = content_shard("rollouts", b"abc", rows=2, tokens=5)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert shard.key == f"rollouts/{digest}.parquet"
    assert (shard.sha256, shard.bytes, shard.rows, shard.tokens) == (digest, 3, 2, 5)


def test_a_published_unit_is_found_and_read(storage: Storage) -> None:
    assert committed_units(storage, FOLDER) == set()
    made = publish_bytes(storage, b"data")
    assert committed_units(storage, FOLDER) == {"00001"}
    found = read_commit(storage, FOLDER, "00001", fingerprint="w")
    assert found == made
    assert storage.read_shard(found.shard) == b"data"


def test_two_writers_of_one_unit_make_one_commit_that_both_return(storage: Storage) -> None:
    barrier = threading.Barrier(2)

    def attempt(data: bytes) -> Commit:
        barrier.wait()
        return publish_bytes(storage, data)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(attempt, [b"one", b"two"])
    assert first == second == read_commit(storage, FOLDER, "00001", fingerprint="w")
    assert storage.read_shard(first.shard) in (b"one", b"two")
    assert storage.names(f"{FOLDER}/commits") == {"00001.json"}


def test_a_second_writer_of_the_same_bytes_returns_the_first_commit(
    local_storage: Storage,
) -> None:
    first = publish_bytes(local_storage, b"data")
    second = publish_bytes(local_storage, b"data")
    assert second.attempt == first.attempt


def test_a_unit_committed_by_other_work_is_an_identity_error(local_storage: Storage) -> None:
    publish_bytes(local_storage, b"data", work="old-work")
    with pytest.raises(IdentityError, match=r"00001\.json .*found .*old-work.*expected new-work"):
        publish_bytes(local_storage, b"data", work="new-work")
    with pytest.raises(IdentityError, match="new run under another run.name"):
        read_commit(local_storage, FOLDER, "00001", fingerprint="new-work")


def test_the_shard_is_stored_before_the_commit_that_names_it(
    local_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "create", die)
    with pytest.raises(KeyboardInterrupt):
        publish_bytes(local_storage, b"data")
    assert committed_units(local_storage, FOLDER) == set()
    assert len(local_storage.names("rollouts")) == 1


def test_a_lost_reply_to_the_commit_is_our_own_commit(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    storage = Storage(use_s3(moto_server.at(proxy.endpoint)), QUICK)
    proxy.force("none", method="PUT")  # the shard
    proxy.force(RESET_AFTER, method="PUT")  # the commit
    made = publish_bytes(storage, b"data")
    assert proxy.counts[RESET_AFTER] == 1
    assert read_commit(storage, FOLDER, "00001", fingerprint="w") == made


@pytest.mark.s3
def test_rivals_in_a_storm_agree_on_one_commit_per_unit(
    s3_server: SeaweedServer, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server.endpoint, STORM, seed=3)
    root = use_s3(s3_server.account.at(proxy.endpoint))
    rivals = [Storage(root, QUICK), Storage(root, QUICK)]
    units = [f"{number:05d}" for number in range(6)]

    def work(rival: int) -> list[Commit]:
        return [publish_bytes(rivals[rival], b"%d" % rival, unit=unit) for unit in units]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert first == second
    assert committed_units(rivals[0], FOLDER) == set(units)
