"""The loop over units: only what is missing, by any number of workers, each unit once."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.runs.units import Worker, run_units
from pipeline.store.commit import committed_units, read_commit
from pipeline.store.storage import Storage
from schemas.keys import commit_key
from tests.support.countedwork import FOLDER, TOKENS, UNITS, Recorder, Work


def run_in_process(storage: Storage) -> int:
    work = Work(storage)
    assert work.run() == set(UNITS)
    return len(work.computed)


def test_all_units_are_computed_once_and_committed(local_storage: Storage) -> None:
    work = Work(local_storage)
    assert work.run() == set(UNITS)
    assert sorted(work.computed) == UNITS
    assert committed_units(local_storage, FOLDER) == set(UNITS)
    commit = read_commit(local_storage, FOLDER, UNITS[5], fingerprint="w")
    assert local_storage.read_shard(commit.shard) == b"unit 5"


def test_a_finished_stage_computes_nothing(local_storage: Storage) -> None:
    Work(local_storage).run()
    again = Work(local_storage)
    assert again.run() == set(UNITS)
    assert again.computed == []


def test_only_missing_units_are_computed(local_storage: Storage) -> None:
    Work(local_storage).run()
    for unit in (UNITS[2], UNITS[9]):
        local_storage.delete(commit_key(FOLDER, unit))
    again = Work(local_storage)
    assert again.run() == set(UNITS)
    assert sorted(again.computed) == [UNITS[2], UNITS[9]]


def test_an_interrupted_stage_goes_on_where_it_stopped(local_storage: Storage) -> None:
    first, progress = Work(local_storage, dies_after=5), Recorder()
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=progress)
    assert (progress.units, progress.stopped) == (5, 1)
    second = Work(local_storage)
    assert second.run() == set(UNITS)
    assert sorted(first.computed + second.computed) == UNITS


def test_progress_counts_units_and_tokens(local_storage: Storage) -> None:
    Work(local_storage).run()
    for unit in UNITS[:3]:
        local_storage.delete(commit_key(FOLDER, unit))
    progress = Recorder()
    Work(local_storage).run(progress=progress)
    assert progress.started == [("score big", 12, 9)]
    assert (progress.units, progress.tokens, progress.stopped) == (3, 3 * TOKENS, 1)


def test_a_unit_that_another_worker_finished_meanwhile_is_counted_and_not_computed(
    local_storage: Storage,
) -> None:
    progress, other = Recorder(), Work(local_storage)
    computed: list[int] = []

    def compute(index: int) -> int:
        computed.append(index)
        for unit in range(len(UNITS)):  # all are done while we are busy with our first one
            other.compute(unit)
        return TOKENS

    worker = Worker()
    run_units(
        local_storage,
        FOLDER,
        UNITS,
        label="score big",
        worker=worker,
        compute=compute,
        progress=progress,
    )
    assert len(computed) == 1
    assert (progress.units, progress.tokens) == (12, TOKENS)


def test_no_units_are_no_work(local_storage: Storage) -> None:
    progress = Recorder()
    found = run_units(
        local_storage,
        FOLDER,
        [],
        label="score big",
        worker=Worker(),
        compute=lambda _: 1 // 0,
        progress=progress,
    )
    assert found == set()
    assert progress.started == [("score big", 0, 0)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_workers_split_the_units_without_gap_or_overlap(local_storage: Storage, count: int) -> None:
    computed = []
    for index in range(count):
        work, progress = Work(local_storage), Recorder()
        done = work.run(Worker(index, count), progress)
        mine = [unit for i, unit in enumerate(UNITS) if i % count == index]
        assert sorted(work.computed) == mine
        assert progress.started == [("score big", len(mine), 0)]
        computed += work.computed
        assert done == set(computed) or not mine
    assert sorted(computed) == UNITS


def test_threads_together_finish_with_one_commit_per_unit(local_storage: Storage) -> None:
    works = [Work(local_storage), Work(local_storage)]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(Work.run, works):
            assert done == set(UNITS)
    assert local_storage.names(f"{FOLDER}/commits") == {f"{unit}.json" for unit in UNITS}
    assert set(works[0].computed) | set(works[1].computed) == set(UNITS)


@pytest.mark.s3
def test_processes_together_finish_with_one_commit_per_unit(s3_storage: Storage) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        computed = pool.map(run_in_process, [s3_storage] * 2, chunksize=1)
    assert sum(computed) >= len(UNITS)
    assert s3_storage.names(f"{FOLDER}/commits") == {f"{unit}.json" for unit in UNITS}
    for index, unit in enumerate(UNITS):
        shard = read_commit(s3_storage, FOLDER, unit, fingerprint="w").shard
        assert s3_storage.read_shard(shard) == f"unit {index}".encode()


def test_the_order_differs_between_attempts(tmp_path_factory: pytest.TempPathFactory) -> None:
    orders = set()
    for _ in range(3):
        work = Work(Storage(str(tmp_path_factory.mktemp("store"))))
        work.run()
        orders.add(tuple(work.computed))
    assert len(orders) > 1
