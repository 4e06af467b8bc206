"""Exports of a model: its logits, its tokenizer, and files named by their content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.checkpoints import folder as checkpoint_folder
from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.folder import export_folder
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import load_tokenizer
from pipeline.models.tokenizeridentity import tokenizer_digest
from pipeline.quickstart.addition import make_tokenizer
from pipeline.store.disk.files import file_sha256
from schemas.errors import DataError
from tests.support import tiny
from tests.support.checkpoints import exported, logits, model_of


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def export(made: Path, folder: Path, state: Mapping[str, Tensor] | None = None) -> Path:
    """Return the export of a folder, with a state of its own or another."""
    model, source = model_of(made), ModelSource(str(made), None, False)
    folder.mkdir()
    given = model.state_dict() if state is None else state
    export_folder(model, given, source=source, folder=folder)
    return folder


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_gives_the_same_logits_and_the_same_tokenizer(
    tmp_path: Path, arch: str, tied: bool
) -> None:
    folder = exported(tmp_path, arch=arch, tied=tied)
    expected = logits(model_of(tmp_path / "model-0"))
    assert torch.equal(logits(model_of(folder)), expected)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain), expected)
    tokenizer = load_tokenizer(str(folder), revision=None, trust_remote_code=False)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(make_tokenizer())


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_written_where_the_source_has_one(tmp_path: Path, tied: bool) -> None:
    folder = exported(tmp_path, tied=tied)
    assert tensors_of(folder).keys() == tensors_of(tmp_path / "model-0").keys()
    assert ("lm_head.weight" in tensors_of(folder)) != tied


def test_a_tied_head_that_came_with_the_source_stays(tmp_path: Path) -> None:
    made = tiny.make_model(tmp_path / "model")
    (path,) = made.glob("*.safetensors")
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    first = export(made, tmp_path / "first")
    again = export(first, tmp_path / "again")
    for folder in (first, again):
        found = tensors_of(folder)
        assert found.keys() == tensors.keys()
        assert torch.equal(found["lm_head.weight"], tensors["lm_head.weight"])


def test_a_state_without_its_tied_head_is_whole(tmp_path: Path) -> None:
    made = tiny.make_model(tmp_path / "model")
    model = model_of(made)
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    target = export(made, tmp_path / "export", state)
    assert torch.equal(logits(model_of(target)), logits(model))


def test_the_given_state_is_written_and_not_the_models_own(tmp_path: Path) -> None:
    model, other = (model_of(tiny.make_model(tmp_path / str(s), seed=s)) for s in (1, 2))
    target = export(tmp_path / "1", tmp_path / "export", other.state_dict())
    assert torch.equal(logits(model_of(target)), logits(other))
    assert not torch.equal(logits(model), logits(other))


def test_weights_that_were_not_gathered_are_refused(tmp_path: Path) -> None:
    made = tiny.make_model(tmp_path / "model")
    state = model_of(made).state_dict() | {"model.norm.weight": torch.empty(0)}
    with pytest.raises(DataError, match="1 empty tensors, such as model.norm.weight"):
        export(made, tmp_path / "export", state)


@pytest.mark.parametrize("max_file", ["4GB", "20KB"])
def test_weight_files_are_named_by_content_and_the_index_names_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_file: str
) -> None:
    monkeypatch.setattr(checkpoint_folder, "MAX_FILE", max_file)
    folder = exported(tmp_path)
    paths = sorted(folder.glob("*.safetensors"))
    assert (len(paths) > 1) == (max_file == "20KB")
    index = json.loads((folder / INDEX).read_text())
    assert set(index["weight_map"].values()) == {path.name for path in paths}
    for path in paths:
        digest = path.name.removeprefix("model-").removesuffix(".safetensors")
        assert file_sha256(path).startswith(digest) and len(digest) == 16
        named = {name for name, file in index["weight_map"].items() if file == path.name}
        assert named == set(load_file(path))
    assert torch.equal(logits(model_of(folder)), logits(model_of(tmp_path / "model-0")))
