"""The right to write: stores that cannot refuse a second writer are refused, or used by one."""

import os
import time

import pytest

from pipeline.store.commit import content_shard, publish
from pipeline.store.records import create_record
from pipeline.store.storage import Storage
from pipeline.store.writer import honours_create, require_safe_writes
from schemas.config.storage import StorageSection
from schemas.errors import IdentityError, StorageError
from schemas.keys import pin_key
from schemas.records.scores import PinRecord
from tests.conftest import QUICK, ProxyFactory, UseS3
from tests.support.servers import S3Account, SeaweedServer

ALONE = StorageSection(**{**QUICK.model_dump(), "single_writer": True})


@pytest.fixture
def careless_storage(careless_server: S3Account, use_s3: UseS3) -> Storage:
    return Storage(use_s3(careless_server), QUICK)


@pytest.fixture
def lone_storage(careless_server: S3Account, use_s3: UseS3) -> Storage:
    """Return a root on a store that ignores create-only, which one process writes to."""
    return Storage(use_s3(careless_server), ALONE)


# --- the probe ---


def test_every_kind_of_store_here_honours_create_only(storage: Storage) -> None:
    require_safe_writes(storage)
    assert honours_create(storage)
    assert storage.folders("") <= {"probe"}  # some stores keep a folder that is empty
    assert storage.names("probe") == set()


def test_probes_of_killed_processes_go_with_the_next_one(local_storage: Storage) -> None:
    folder = local_storage.local_root
    assert folder is not None
    for name, age_s in {"old": 2 * 86400.0, "new": 60.0}.items():
        local_storage.put(f"probe/{name}", b"first")
        then = time.time() - age_s
        os.utime(folder / "probe" / name, (then, then))
    require_safe_writes(local_storage)
    assert local_storage.names("probe") == {"new"}


def test_a_store_that_ignores_create_only_is_refused_each_time(careless_storage: Storage) -> None:
    assert not honours_create(careless_storage)
    for _ in range(2):
        expected = r"ignores create-only writes .*set storage\.single_writer = true"
        with pytest.raises(StorageError, match=expected):
            require_safe_writes(careless_storage)
    assert careless_storage.folders("") == set()


def test_a_process_probes_a_root_once(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    root = use_s3(moto_server.at(proxy.endpoint))
    require_safe_writes(Storage(root, QUICK))
    asked = proxy.counts.total()
    assert asked
    require_safe_writes(Storage(root, QUICK))
    assert proxy.counts.total() == asked
    require_safe_writes(Storage(f"{root}-other", QUICK))
    assert proxy.counts.total() == 2 * asked


def test_a_root_with_a_single_writer_is_not_probed(
    moto_server: S3Account, use_s3: UseS3, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server.endpoint)
    root = use_s3(moto_server.at(proxy.endpoint))
    require_safe_writes(Storage(root, ALONE))
    assert not proxy.counts
    require_safe_writes(Storage(root, QUICK))  # that one process wrote there is no proof
    assert proxy.counts


@pytest.mark.s3
def test_a_store_that_cannot_be_written_is_refused(s3_server: SeaweedServer, use_s3: UseS3) -> None:
    reader = Storage(use_s3(s3_server.reader), QUICK)
    with pytest.raises(StorageError, match="was refused"):
        require_safe_writes(reader)


# --- one writer ---


def test_a_single_writer_creates_what_is_not_there_and_nothing_else(lone_storage: Storage) -> None:
    require_safe_writes(lone_storage)
    assert lone_storage.create("key", b"first")
    assert lone_storage.create("key", b"first")
    assert not lone_storage.create("key", b"second")
    assert lone_storage.get("key") == b"first"


def test_the_record_of_a_single_writer_stands(lone_storage: Storage) -> None:
    first, second = (PinRecord(scorer="5" * 32, note=note) for note in ("first", "second"))
    key = pin_key(first.scorer)
    assert create_record(lone_storage, key, first) == first
    assert create_record(lone_storage, key, second) == first


def test_a_single_writer_cannot_commit_other_work_to_a_unit(lone_storage: Storage) -> None:
    shard = content_shard("rollouts", b"data", rows=1, tokens=3)
    publish(lone_storage, "folder", "0", shard=shard, data=b"data", fingerprint="old")
    with pytest.raises(IdentityError, match=r"found .*old.*expected new"):
        publish(lone_storage, "folder", "0", shard=shard, data=b"data", fingerprint="new")
