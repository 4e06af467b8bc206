"""Leases: a unit is left to a holder that lives, and taken over from one that does not."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.runs.leases import MOST_HOLDERS, Leases, at_work, holders, machine
from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from schemas.keys import lease_key
from schemas.records.shards import LeaseRecord
from tests.support.countedwork import FOLDER, UNITS, Recorder, Work


def test_a_unit_whose_holder_is_dead_is_taken_over_at_once(local_storage: Storage) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        dead = pool.apply(os.getpid)
        pool.close()
        pool.join()
    hold(local_storage, UNITS[3], process=dead)
    assert Work(local_storage).run() == set(UNITS)
    assert local_storage.names(f"{FOLDER}/leases") == set()


def test_a_unit_whose_holder_is_silent_is_taken_over_in_time(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), StorageSection(lease_s=2.0))
    work, progress = all_done_but(storage, 3), Recorder()
    hold(storage, UNITS[3], process=1)
    assert work.run(progress=progress) == set(UNITS)
    assert work.computed[-1] == UNITS[3]
    assert progress.notes == ["waiting for 1 units that other workers hold"]


def test_a_unit_is_waited_for_while_its_holder_renews(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), StorageSection(lease_s=2.0))
    work, other, versions = all_done_but(storage, 7), Work(storage), set[str]()
    with Leases(storage, FOLDER) as leases, ThreadPoolExecutor(1) as pool:
        assert leases.take(UNITS[7])
        waiting = pool.submit(work.run)
        while len(versions) < 5:  # it is renewed three times in the length of a lease
            version = storage.version(lease_key(FOLDER, UNITS[7]))
            assert version is not None and not waiting.done()
            versions.add(version.tag)
            time.sleep(0.05)
        other.compute(7)
        leases.release(UNITS[7])
        assert waiting.result() == set(UNITS)
    assert UNITS[7] not in work.computed


def test_a_unit_whose_holder_lives_but_gets_nowhere_is_taken_over(tmp_path: Path) -> None:
    quick = StorageSection(lease_s=0.4, stall_s=1.0)
    with Leases(Storage(str(tmp_path), quick), FOLDER) as leases:
        assert leases.take(UNITS[3])
        work = Work(Storage(str(tmp_path), quick))
        with ThreadPoolExecutor(1) as pool:
            # its units are done in no time, and this thread shows no sign of life meanwhile
            assert pool.submit(work.run).result() == set(UNITS)
    assert UNITS[3] in work.computed


def all_done_but(storage: Storage, index: int) -> Work:
    """Return work whose units are committed, but for one."""
    work = Work(storage)
    for other in set(range(len(UNITS))) - {index}:
        work.compute(other)
    return work


def hold(storage: Storage, unit: str, *, process: int) -> None:
    record = LeaseRecord(owner="other", machine=machine(), process=process)
    assert storage.create(f"{FOLDER}/leases/{unit}.json", record.to_bytes())


def test_holders_are_told_with_the_age_of_their_lease_and_whether_they_are_gone(
    local_storage: Storage,
) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        dead = pool.apply(os.getpid)
        pool.close()
        pool.join()
    hold(local_storage, UNITS[1], process=dead)
    local_storage.put(lease_key(FOLDER, UNITS[2]), b"of nobody")
    with at_work(local_storage, FOLDER, "learner"):
        second, first = holders(local_storage, FOLDER)
    assert (first.unit, first.process, first.gone) == ("learner", os.getpid(), False)
    assert (second.unit, second.process, second.gone) == (UNITS[1], dead, True)
    assert machine().startswith(first.host) and 0 <= first.age_s < 60
    assert [holder.unit for holder in holders(local_storage, FOLDER)] == [UNITS[1]]


def test_few_of_many_holders_are_read(memory: Storage) -> None:
    for number in range(3 * MOST_HOLDERS):
        hold(memory, f"u{number:05d}", process=1)
    assert len(holders(memory, FOLDER)) == MOST_HOLDERS
