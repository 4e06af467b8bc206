"""The probe beside a checkpoint's weights: what it holds, and that attempts at one do not mix."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.opening import opened
from pipeline.checkpoints.probe import Probe, find_probe, make_probe, write_probe
from pipeline.checkpoints.publishing import publish_checkpoint
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.errors import DataError
from schemas.records.training import CheckpointManifest
from tests.support import tiny
from tests.support.checkpoints import ORIGIN, Overtaken, exported


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with a fresh store."""
    return open_run(load_config(tiny.write_run(tmp_path / "run")))


def probe(shift: float = 0.0) -> Probe:
    """Return a probe of two sequences."""
    rows = [np.array(row, np.int32) for row in ([3, 4, 5, 6, 7], [8, 9, 3])]
    prompts = np.array([2, 1])
    return make_probe(
        rows, prompts.tolist(), np.array([-0.1, -2.5, -3.3, -7.0, -1e-9], np.float32) + shift
    )


def folder_with(probe: Probe, folder: Path, seed: int = 0) -> Path:
    made = exported(folder, seed=seed)
    write_probe(made, probe)
    return made


def publish(run: Run, folder: Path) -> CheckpointManifest:
    return publish_checkpoint(run, 1, folder, origin=ORIGIN, state=None)


def test_a_probe_holds_each_row_with_its_log_probabilities_to_the_last_bit() -> None:
    made = probe()
    assert made.prompt_ids == ((3, 4), (8,)) and made.response_ids == ((5, 6, 7), (9, 3))
    again = Probe.from_bytes(made.to_bytes(), where="here")
    assert again == made
    expected = np.array([-0.1, -2.5, -3.3, -7.0, -1e-9], np.float32)
    np.testing.assert_array_equal(again.logprobs_T, expected)
    assert again.logprobs_T.dtype == np.float32
    assert [row.tolist() for row in (*again.prompts, *again.responses)] == [
        [3, 4],
        [8],
        [5, 6, 7],
        [9, 3],
    ]


def test_a_probe_comes_with_its_checkpoint_and_is_no_part_of_its_version(
    run: Run, tmp_path: Path
) -> None:
    manifest = publish(run, folder_with(probe(), tmp_path))
    with opened(run, manifest) as folder:
        assert find_probe(folder, manifest) == probe()
        (path,) = folder.glob("opd-probe-*.json")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="is corrupt"), opened(run, manifest):
        pass
    (tmp_path / "bare").mkdir()
    bare = open_run(load_config(tiny.write_run(tmp_path / "other")))
    without = publish(bare, exported(tmp_path / "bare"))
    assert without.policy_version == manifest.policy_version
    with opened(bare, without) as folder:
        assert find_probe(folder, without) is None


def test_of_two_attempts_at_once_the_one_that_stands_has_its_own_probe(
    run: Run, tmp_path: Path
) -> None:
    folders = []
    for name, shift in (("rival", 0.0), ("slow", 1e-6)):
        (tmp_path / name).mkdir()
        folders.append(folder_with(probe(shift), tmp_path / name))
    rival, slow = folders
    assert (rival / INDEX).read_bytes() == (slow / INDEX).read_bytes()
    overtaken = replace(run, storage=Overtaken(lambda: publish(run, rival), run))
    stands = publish(overtaken, slow)
    assert run.storage.local_root is not None
    kept = run.storage.local_root / run.checkpoint_folder(stands.index)
    assert len(list(kept.glob("opd-probe-*.json"))) == 2
    with opened(run, stands) as folder:
        assert len(list(folder.glob("opd-probe-*.json"))) == 1, "what no manifest names is not read"
        assert find_probe(folder, stands) == probe()
