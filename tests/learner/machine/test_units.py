"""Units that the processes of a machine share: made once, whoever dies, and never waited for."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.learner.machine.files import arrays_of, map_batch, write_batch
from pipeline.learner.machine.units import SharedUnits
from pipeline.learner.sequences import Batch, SampleColumns, TeacherColumns, untrained_batch
from schemas.errors import DataError


def whole_batch(rows: int = 3, *, seed: int = 0) -> Batch:
    """Return a batch that has every column there is."""
    random = np.random.default_rng(seed)
    tokens, prompts = random.integers(1, 5, rows), random.integers(1, 4, rows)
    count = int(tokens.sum())

    def ids(*shape: int) -> np.ndarray:
        return random.integers(0, 99, shape, dtype=np.int32)

    def floats(*shape: int) -> np.ndarray:
        return random.random(shape, dtype=np.float32)

    sample = SampleColumns("student", ids(count, 2), floats(count, 2), floats(count, 2))
    teacher = TeacherColumns(
        ids(count, 4), floats(count, 4), floats(count, 1), floats(count), sample, floats(count)
    )
    return Batch(
        prompt_ids_P=ids(int(prompts.sum())),
        prompt_tokens_B=prompts,
        response_tokens_B=tokens,
        token_ids_T=ids(count),
        weight_T=floats(count),
        rollout_logprob_T=floats(count),
        ended_B=random.random(rows) < 0.5,
        teacher=teacher,
        advantage_B=np.full(rows, np.nan, np.float32),
        gate_B=floats(rows),
    )


def assert_same(found: Batch, expected: Batch) -> None:
    ours, theirs = arrays_of(found), arrays_of(expected)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name
    sides = [b.teacher.sample and b.teacher.sample.of for b in (found, expected)]
    assert sides[0] == sides[1]


@pytest.mark.parametrize("batch", [whole_batch(), untrained_batch(), whole_batch(0)])
def test_a_mapped_batch_is_the_one_that_was_written(tmp_path: Path, batch: Batch) -> None:
    write_batch(tmp_path / "0.unit", batch)
    found = map_batch(tmp_path / "0.unit")
    shutil.rmtree(tmp_path)
    assert_same(found, batch)
    with pytest.raises(ValueError, match="read-only"):
        found.weight_T[:] = 0


def test_a_unit_that_many_ask_for_at_once_is_made_once(tmp_path: Path) -> None:
    made, together = list[int](), threading.Barrier(4)

    def ask(_: int) -> Batch:
        shared = SharedUnits(tmp_path, keep=4)
        together.wait()
        return shared.get(7, make)

    def make() -> Batch:
        time.sleep(0.05)
        made.append(1)
        return whole_batch()

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(4)):
            assert_same(found, whole_batch())
    assert made == [1]


def test_who_dies_while_it_makes_a_unit_holds_nobody_up(tmp_path: Path) -> None:
    shared, (read, write) = SharedUnits(tmp_path, keep=4), os.pipe()
    child = os.fork()
    if not child:  # holds the lock of the unit for ever

        def never() -> Batch:
            os.write(write, b"1")
            time.sleep(600)
            raise AssertionError

        shared.get(0, never)
    assert os.read(read, 1) == b"1"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shared.get, 0, whole_batch)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_same(asked.result(timeout=60), whole_batch())
    os.close(read)
    os.close(write)


def test_an_error_is_told_to_who_met_it_and_the_next_one_tries_again(tmp_path: Path) -> None:
    shared = SharedUnits(tmp_path, keep=4)

    def damaged() -> Batch:
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        shared.get(0, damaged)
    assert_same(shared.get(0, whole_batch), whole_batch())
    assert_same(shared.get(0, damaged), whole_batch())


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def fill(folder: Path) -> None:
    (folder / "0.part").mkdir()


@pytest.mark.parametrize("spoil", [remove, fill])
def test_where_no_file_can_be_left_a_process_makes_its_own(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    spoil(folder)
    shared = SharedUnits(folder, keep=4)
    for seed in (0, 1):
        assert_same(shared.get(0, partial(whole_batch, seed=seed)), whole_batch(seed=seed))


def test_a_nearly_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert_same(SharedUnits(tmp_path, keep=4).get(0, whole_batch), whole_batch())
    assert not list(tmp_path.glob("*.unit"))


def test_the_newest_files_stay_and_what_is_mapped_outlives_its_file(tmp_path: Path) -> None:
    shared = SharedUnits(tmp_path, keep=2)
    found = []
    for unit in range(5):
        found.append(shared.get(unit, partial(whole_batch, seed=unit)))
        os.utime(tmp_path / f"{unit}.unit", (unit, unit))
    assert {path.name for path in tmp_path.glob("*.unit")} == {"3.unit", "4.unit"}
    for unit, batch in enumerate(found):
        assert_same(batch, whole_batch(seed=unit))
