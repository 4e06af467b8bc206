"""Files of a state: what is known goes in and comes out as it was, all else is refused."""

import math
import resource
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from pipeline.learner.statefiles import read_parts, write_parts
from pipeline.store.disk.scratch import scratch
from schemas.errors import ConfigError, DataError, StorageError

PART = "zero_pp_rank_1_mp_rank_00_optim_states"


class Scaler(LossScaler):  # type: ignore[misc] # DeepSpeed has no types
    """A kind of object that states do not have."""


def written(folder: Path, tree: dict[str, Any], part: str = PART) -> Path:
    """Write a part and return its JSON file."""
    write_parts({part: tree}, folder)
    return folder / f"{part}.json"


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tied = torch.randn(3, 2, dtype=torch.bfloat16)
    tree = {
        "module": OrderedDict({"head": tied, "tied": tied, "none": torch.empty(0)}),
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 6).T}},
        "shapes": [torch.Size([2, 3]), (0.9, 1e-300, -0.0)],
        "plain": [None, True, 2**60, "ä\n", 0.1],
        "zero_stage": ZeroStageEnum.weights,
        "loss_scaler": LossScaler(1.0),
    }
    written(tmp_path, tree)
    found = read_parts(tmp_path, 1)[PART]
    for name, tensor in tree["module"].items():
        assert torch.equal(found["module"][name], tensor)
        assert found["module"][name].dtype == tensor.dtype
    assert torch.equal(found["state"][0]["exp_avg"], tree["state"][0]["exp_avg"])
    assert found["state"][0]["step"].shape == ()
    assert found["shapes"] == [(2, 3), (0.9, 1e-300, -0.0)]
    assert found["plain"] == tree["plain"]
    assert found["zero_stage"] is ZeroStageEnum.weights
    assert type(found["loss_scaler"]) is LossScaler and found["loss_scaler"].cur_scale == 1.0


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    tied = torch.zeros(1000)
    path = written(tmp_path, {"a": tied, "b": tied})
    assert path.with_suffix(".safetensors").stat().st_size < 1.5 * tied.nbytes


def test_a_process_reads_what_is_everybodys_and_its_own(tmp_path: Path) -> None:
    parts = ["mp_rank_00_model_states", PART, PART.replace("1", "11")]
    for part in (*parts, f"bf16_{PART}"):
        written(tmp_path, {"rank": part}, part)
    assert set(read_parts(tmp_path, 1)) == {*parts[:2], f"bf16_{PART}"}


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1.5: 1},
        {"f": print},
        torch.float32,
        Scaler(1.0),
        np.float64(1.0),
        1j,
    ],
)
def test_what_is_not_known_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="opd does not know"):
        written(tmp_path, {"a": [value]})
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ConfigError, match=r"of module/w: lower train\.learning_rate"):
            written(tmp_path, {"module": {"w": torch.tensor([1.0, value, 2.0], dtype=dtype)}})
    with pytest.raises(ConfigError, match="opd does not know"):
        written(tmp_path, {"lr": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tree",
    [
        '{"object": "os.system"}',
        '{"dict": [["a", {"tensor": "nowhere"}]]}',
        '{"dict": [["a", {"tensor": 5}]]}',
        '{"dict": [[["a"], 1]]}',
        '{"dict": [["a"]]}',
        '{"dict": 5}',
        '{"dict": [["a", NaN]]}',
        '{"dict": [["a", {"loss_scaler": Infinity}]]}',
        '{"dict": [["a", {"loss_scaler": "x"}]]}',
        '{"dict": [["a", {"zero_stage": 9}]]}',
        '{"dict": [["a", {"tuple": [], "dict": []}]]}',
        "{}",
        "[]",
        "null",
        "[" * 5000 + "]" * 5000,
    ],
)
def test_a_tree_of_another_form_is_refused(tmp_path: Path, tree: str) -> None:
    path = written(tmp_path, {"a": torch.zeros(1)})
    path.write_text(f'{{"schema_version": 1, "tree": {tree}}}')
    with pytest.raises(DataError):
        read_parts(tmp_path, 1)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\xff" * 40, b"PK\x03\x04" + bytes(40)])
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_files_of_another_kind_are_refused(tmp_path: Path, data: bytes, ending: str) -> None:
    written(tmp_path, {"a": torch.zeros(1)}).with_suffix(f".{ending}").write_bytes(data)
    with pytest.raises(DataError, match=PART):
        read_parts(tmp_path, 1)


def test_a_missing_file_of_tensors_is_told(tmp_path: Path) -> None:
    written(tmp_path, {"a": torch.zeros(1)}).with_suffix(".safetensors").unlink()
    with pytest.raises(DataError, match=PART):
        read_parts(tmp_path, 1)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow above a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_of_the_disk() -> None:
    big = {"a": torch.zeros(10_000)}
    with (
        pytest.raises(StorageError, match="TMPDIR"),
        scratch("state") as folder,
        largest_file(4096),
    ):
        written(folder, big)
