"""The commit rule: one commit per unit, quiet losers, and stores that ignore create-only."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.store import writer as store_writer
from pipeline.store.commit import committed_units, content_shard, publish, read_commit
from pipeline.store.records import create_record, find_record, read_record
from pipeline.store.storage import Storage
from pipeline.store.writer import WRITER_KEY, honours_create, writer
from schemas.errors import ConflictError, DataError, IdentityError, StorageError
from schemas.keys import commit_key
from schemas.records.shards import Commit, Shard, UnitShard
from tests.conftest import QUICK, ProxyFactory, UseS3
from tests.support.faults import RESET_AFTER, STORM
from tests.support.servers import S3Account, SeaweedServer

FOLDER = "runs/a/rounds/0000/rollout"


def publish_bytes(storage: Storage, data: bytes, *, unit: str = "00001", work: str = "w") -> Commit:
    shard = content_shard("rollouts", data, rows=1, tokens=3)
    return publish(storage, FOLDER, unit, shard=shard, data=data, fingerprint=work)


@pytest.fixture
def careless_storage(careless_server: S3Account, use_s3: UseS3) -> Storage:
    return Storage(use_s3(careless_server), QUICK)


# --- publish ---


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
    publish_bytes(local_storage, b"data", work="old work")
    with pytest.raises(IdentityError, match=r"00001\.json .*found .*old work.*expected new work"):
        publish_bytes(local_storage, b"data", work="new work")
    with pytest.raises(IdentityError, match="new run under another run.name"):
        read_commit(local_storage, FOLDER, "00001", fingerprint="new work")


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


# --- records ---


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
        UnitShard(unit=unit, shard=Shard(key="k", sha256="s", bytes=1, rows=1, tokens=1))
        for unit in ("first", "second")
    )
    assert create_record(local_storage, "manifest.json", first) == first
    assert create_record(local_storage, "manifest.json", second) == first


# --- the right to write ---


def test_every_kind_of_store_here_honours_create_only(storage: Storage) -> None:
    assert honours_create(storage)
    assert storage.names("probe") == set()


def test_a_store_that_honours_create_only_takes_many_writers(
    local_storage: Storage,
) -> None:
    with writer(local_storage), writer(local_storage):
        assert not local_storage.exists(WRITER_KEY)


def test_a_careless_store_is_found_out(careless_storage: Storage) -> None:
    assert not honours_create(careless_storage)
    assert careless_storage.names("probe") == set()


def test_a_careless_store_takes_one_writer_after_another(
    careless_storage: Storage, no_waiting: Counter[float]
) -> None:
    for _ in range(2):
        with writer(careless_storage):
            assert careless_storage.exists(WRITER_KEY)
        assert not careless_storage.exists(WRITER_KEY)


def test_a_careless_store_refuses_a_second_writer_while_one_is_alive(
    careless_storage: Storage, no_waiting: Counter[float]
) -> None:
    expected = r"ignores create-only writes .*writer\.json says that another one is alive"
    with writer(careless_storage):
        rival = Storage(careless_storage.root, QUICK)
        with pytest.raises(ConflictError, match=expected), writer(rival):
            raise AssertionError("a second writer came in")
        assert careless_storage.exists(WRITER_KEY)


def test_a_writer_beats_for_as_long_as_it_holds_the_right(
    careless_storage: Storage, monkeypatch: pytest.MonkeyPatch, no_waiting: Counter[float]
) -> None:
    monkeypatch.setattr(store_writer, "BEAT_S", 0.01)
    with writer(careless_storage):
        seen = {careless_storage.get(WRITER_KEY)}
        while len(seen) < 3:
            seen.add(careless_storage.get(WRITER_KEY))


def test_a_writer_that_stopped_beating_is_taken_over(
    careless_storage: Storage, monkeypatch: pytest.MonkeyPatch, no_waiting: Counter[float]
) -> None:
    with writer(careless_storage):
        crashed = careless_storage.get(WRITER_KEY)
    assert crashed is not None
    careless_storage.put(WRITER_KEY, crashed)
    with pytest.raises(ConflictError), writer(careless_storage):
        raise AssertionError("a crashed writer counts as alive at first")
    monkeypatch.setattr(store_writer, "STALE_S", -1.0)
    with writer(careless_storage):
        assert careless_storage.get(WRITER_KEY) not in (None, crashed)


def test_of_two_writers_that_take_over_together_the_last_to_write_wins(
    careless_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_rival_writes_meanwhile(_: float) -> None:
        rival = store_writer._Lock(owner="rival", time_s=2e9)
        careless_storage.put(WRITER_KEY, rival.to_bytes())

    monkeypatch.setattr("pipeline.store.writer.time.sleep", a_rival_writes_meanwhile)
    with pytest.raises(ConflictError), writer(careless_storage):
        raise AssertionError("both writers came in")
    assert b"rival" in (careless_storage.get(WRITER_KEY) or b"")


@pytest.mark.s3
def test_a_store_that_cannot_be_written_has_no_writer(
    s3_server: SeaweedServer, use_s3: UseS3
) -> None:
    reader = Storage(use_s3(s3_server.reader), QUICK)
    with pytest.raises(StorageError, match="was refused"), writer(reader):
        raise AssertionError("a reader became a writer")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Return the pauses that were asked for and not slept."""
    pauses: Counter[float] = Counter()

    def count(pause_s: float) -> None:
        pauses[pause_s] += 1

    monkeypatch.setattr("pipeline.store.writer.time.sleep", count)
    return pauses
