"""Stores that cannot refuse a second writer, and the right to write to them."""

from collections import Counter

import pytest

from pipeline.store import writer as store_writer
from pipeline.store.storage import Storage
from pipeline.store.writer import WRITER_KEY, honours_create, writer
from schemas.errors import ConflictError, StorageError
from tests.conftest import QUICK, UseS3
from tests.support.servers import S3Account, SeaweedServer


@pytest.fixture
def careless_storage(careless_server: S3Account, use_s3: UseS3) -> Storage:
    return Storage(use_s3(careless_server), QUICK)


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
