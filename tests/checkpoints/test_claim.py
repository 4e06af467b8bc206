"""The file that decides between two attempts carries their manifest, and stays what it is."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file

from pipeline.checkpoints.claim import INDEX, deciding_file, manifest_within, with_manifest
from pipeline.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MAP = {"metadata": {"total_size": 8}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}
SAME_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def index_in(folder: Path) -> Path:
    path = folder / INDEX
    path.write_text(json.dumps(MAP))
    return path


def weights_in(folder: Path, metadata: dict[str, str] | None) -> Path:
    path = folder / ADAPTER_WEIGHTS
    save_file({"x": torch.arange(5.0), "y": torch.ones(2, 2)}, path, metadata=metadata)
    return path


@SAME_FILE
@given(manifest=TEXT)
def test_an_index_says_the_same_of_its_tensors_and_holds_the_manifest(
    tmp_path: Path, manifest: str
) -> None:
    data = with_manifest(index_in(tmp_path), manifest)
    assert manifest_within(data, where="x") == manifest
    found = json.loads(data)
    assert found["weight_map"] == MAP["weight_map"]
    assert found["metadata"] == {"total_size": 8, "opd": manifest}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@SAME_FILE
@given(manifest=TEXT)
def test_weights_open_as_before_and_hold_the_manifest(
    tmp_path: Path, metadata: dict[str, str] | None, manifest: str
) -> None:
    path = weights_in(tmp_path, metadata)
    data = with_manifest(path, manifest)
    assert manifest_within(data, where="x") == manifest
    expected, found = load_file(path), load(data)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    said = json.loads(data[8 : 8 + header])["__metadata__"]
    assert said == {**(metadata or {}), "opd": manifest}


@SAME_FILE
@given(first=TEXT, second=TEXT)
def test_a_later_manifest_takes_the_place_of_an_earlier_one(
    tmp_path: Path, first: str, second: str
) -> None:
    for path in (index_in(tmp_path), weights_in(tmp_path, None)):
        expected = with_manifest(path, second)
        path.write_bytes(with_manifest(path, first))
        assert with_manifest(path, second) == expected


def test_the_weights_of_an_adapter_decide_and_of_a_model_its_index(tmp_path: Path) -> None:
    assert deciding_file(tmp_path) == INDEX
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    assert deciding_file(tmp_path) == ADAPTER_WEIGHTS
