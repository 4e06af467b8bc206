"""Models on disk: loaded whole and on a device, or refused in plain words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.loading import check_there, load_model, pick_device
from pipeline.models.source import ModelSource, load_settings
from schemas.errors import ConfigError
from tests.support.modelfolders import (
    COMMIT,
    WEIGHTS,
    break_config,
    drop_weights,
    edit_config,
    source_of,
)


def cut_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def write_text(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1")


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_a_size(folder: Path) -> None:
    edit_config(folder, intermediate_size=99)


def add_a_layer(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    kinds = [*settings["layer_types"], *settings["layer_types"]]
    edit_config(folder, num_hidden_layers=2, layer_types=kinds)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_weights, "no file named model.safetensors"),
        (cut_weights, "cannot load the model"),
        (write_text, "cannot load the model"),
        (drop_a_tensor, "1 missing keys, such as model.layers.0.mlp.up_proj.weight"),
        (change_a_size, "3 mismatched keys, such as .*mlp.down_proj.weight"),
        (add_a_layer, "missing keys, such as model.layers.1."),
        (break_config, "not a valid JSON file"),
    ],
)
def test_a_damaged_model_is_refused(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(source_of(folder), dtype="float32", device="cpu")
    assert str(folder) in str(caught.value)


def test_a_model_that_is_nowhere_is_refused_without_the_hub() -> None:
    with pytest.raises(ConfigError, match=f"hub id \\(revision {COMMIT}\\)"):
        load_model(ModelSource("org/no-such-model", COMMIT, False), dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="org/no-such-model"):
        load_settings(ModelSource("org/no-such-model", COMMIT, False))


def test_a_model_is_loaded_in_its_dtype_for_evaluation(whole: Path) -> None:
    for name in ("float32", "bfloat16"):
        model = load_model(source_of(whole), dtype=name, device="cpu")
        assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}
        assert not model.training
    expected = load_file(whole / WEIGHTS)
    loaded = load_model(source_of(whole), dtype="float32", device="auto").state_dict()
    for key, tensor in expected.items():
        assert torch.equal(loaded[key].cpu(), tensor)


def test_devices_are_named_or_refused() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="'warp' is not a torch device"):
        pick_device("warp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        pick_device("cuda:1")


def test_a_gpu_beyond_those_there_is_refused_with_the_names_of_those() -> None:
    check_there("cuda:1", 1, 2)
    with pytest.raises(ConfigError, match=r"'cuda:3', but torch sees cuda:0 to cuda:1 here"):
        check_there("cuda:3", 3, 2)
    with pytest.raises(ConfigError, match=r"torch sees cuda:0 alone"):
        check_there("cuda:1", 1, 1)


@pytest.mark.parametrize("device", ["cuda:3", "xpu:1", "xpu", "mps"])
def test_a_device_that_is_not_there_is_refused_before_weights_are_read(
    whole: Path, tmp_path: Path, device: str
) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a device")
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    (folder / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=f"device = '{device}', but torch sees no"):
        load_model(source_of(folder), dtype="float32", device=device)
