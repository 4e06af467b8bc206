"""Adapter folders as models: finding their base, what identifies them, merging, their tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, largest_rank, why_not_plain
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource, find_model, load_settings, model_identity
from pipeline.models.tokenizer import model_tokenizer
from pipeline.models.tokenizeridentity import tokenizer_digest
from pipeline.runs.configsource import load_config
from pipeline.store.place import ConfigPlace
from schemas.config.models import TeacherSection
from schemas.errors import ConfigError
from tests.support.golden import Models as GoldenModels
from tests.support.golden import adapted
from tests.support.tiny import make_adapter, make_model, write_run

COMMIT = "0123456789abcdef" * 2 + "01234567"
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with an adapter of its student; tests only read it."""
    folder = tmp_path_factory.mktemp("adapters")
    write_run(folder)
    make_adapter(folder / "adapter", folder / "student")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the adapter alone, which names its base where that still is."""
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


@pytest.fixture
def place(made: Path) -> ConfigPlace:
    return load_config(made / "run.toml").place


def find(place: ConfigPlace, **fields: Any) -> ModelSource:
    return find_model(place, TeacherSection(**fields), "teachers.big")


def refusal(place: ConfigPlace, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        find(place, **fields)
    return str(caught.value)


def change(folder: Path, **settings: Any) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def retensor(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / ADAPTER_WEIGHTS
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


# --- its base ---


def test_the_base_is_the_one_that_the_adapter_names(
    place: ConfigPlace, made: Path, folder: Path
) -> None:
    base = ModelSource(str(made / "student"), None, False)
    assert find(place, model=str(folder)) == ModelSource(str(folder), None, False, base)
    change(folder, base_model_name_or_path="student")  # from the folder of the TOML
    assert find(place, model=str(folder)).base == base
    shutil.copytree(made / "student", folder.parent / "beside")
    change(folder, base_model_name_or_path="../beside")  # or from the adapter's
    found = find(place, model=str(folder)).whole
    assert Path(found.location).resolve() == folder.parent / "beside"


def test_the_configuration_may_name_another_base(
    place: ConfigPlace, made: Path, folder: Path
) -> None:
    change(folder, base_model_name_or_path="/nowhere/at-all")
    assert find(place, model=str(folder), base="student").base == ModelSource(
        str(made / "student"), None, False
    )
    found = find(place, model=str(folder), base="org/base", base_revision=COMMIT)
    assert found.base == ModelSource("org/base", COMMIT, False)
    change(folder, base_model_name_or_path="org/base", revision=COMMIT)
    assert find(place, model=str(folder)).base == ModelSource("org/base", COMMIT, False)


def test_a_base_that_is_not_there_is_told_with_the_way_out(
    place: ConfigPlace, folder: Path
) -> None:
    change(folder, base_model_name_or_path="/nowhere/at-all")
    text = refusal(place, model=str(folder))
    assert "no folder /nowhere/at-all" in text and "teachers.big.base" in text
    change(folder, base_model_name_or_path=None)
    assert "teachers.big.base" in refusal(place, model=str(folder))
    change(folder, base_model_name_or_path="org/base", revision="main")
    assert "'main' may move" in refusal(place, model=str(folder))


def test_a_base_is_a_whole_model(place: ConfigPlace, made: Path, folder: Path) -> None:
    change(folder, base_model_name_or_path=str(made / "adapter"))
    assert "not a whole Hugging Face model" in refusal(place, model=str(folder))
    others: list[dict[str, str]] = [
        {"model": "student", "base": "main"},
        {"model": "student", "base_revision": COMMIT},
        {"model": "org/model", "revision": COMMIT, "base": "main"},
    ]
    for fields in others:
        assert "belong to an adapter" in refusal(place, **fields)


def test_a_damaged_adapter_is_named(place: ConfigPlace, folder: Path) -> None:
    source = find(place, model=str(folder))
    (folder / ADAPTER_WEIGHTS).rename(folder / "other")
    for call in (model_identity, lambda s: load_model(s, dtype="float32", device="cpu")):
        with pytest.raises(ConfigError, match="no adapter_model.safetensors"):
            call(source)
    (folder / ADAPTER_CONFIG).write_text("{")
    assert "no adapter configuration of PEFT" in refusal(place, model=str(folder))


# --- what identifies it ---


def halve(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor / 2 for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: change(folder, lora_alpha=13),
        lambda folder: change(folder, use_rslora=True),
        lambda folder: change(folder, target_modules=["q_proj", "o_proj"]),
        lambda folder: retensor(folder, halve),
    ],
    ids=["alpha", "rslora", "layers", "weights"],
)
def test_what_changes_numbers_changes_the_identity(
    place: ConfigPlace, folder: Path, edit: Edit
) -> None:
    before = model_identity(find(place, model=str(folder)))
    edit(folder)
    after = model_identity(find(place, model=str(folder)))
    assert before["adapter"] != after["adapter"] and before["base"] == after["base"]


def test_the_bytes_of_the_base_are_part_of_the_identity(
    place: ConfigPlace, made: Path, folder: Path
) -> None:
    mine, other = (
        model_identity(find(place, model=str(folder), base=b)) for b in ("student", "main")
    )
    assert mine["base"] == model_identity(ModelSource(str(made / "student"), None, False))
    assert mine["adapter"] == other["adapter"] and mine["base"] != other["base"]


def test_where_the_base_lies_and_who_wrote_the_adapter_is_not(
    place: ConfigPlace, made: Path, folder: Path
) -> None:
    before = model_identity(find(place, model="adapter"))
    change(
        folder,
        base_model_name_or_path=shutil.copytree(made / "student", folder.parent / "moved").name,
        target_modules=["down_proj", "o_proj", "q_proj"],
        peft_version="99",
        inference_mode=False,
    )
    found = find(place, model=str(folder), base=str(folder.parent / "moved"))
    assert model_identity(found) == before


# --- what it becomes ---


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 9}}, {"use_dora": True}],
    ids=["plain", "rslora", "dora"],
)
def test_a_loaded_adapter_is_merged(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = adapted(GoldenModels(tmp_path_factory.mktemp)(), tmp_path / "adapter", **settings)
    merged = load_model(model.source, dtype="float32", device="cpu")
    assert not any(".lora_" in name for name, _ in merged.named_parameters())
    assert load_settings(model.source).vocab_size == merged.config.vocab_size
    ids = torch.tensor([[3, 9, 4, 14, 7]])
    with torch.no_grad():
        expected, found = model.reference(ids).logits, merged(input_ids=ids).logits
        base = load_model(model.source.whole, dtype="float32", device="cpu")(input_ids=ids).logits
    assert (found - expected).abs().max() < 1e-5 < 0.1 < (base - expected).abs().max()


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}


def narrowed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: t[:, :3].contiguous() if "q_proj.lora_A" in n else t for n, t in tensors.items()}


@pytest.mark.parametrize("edit", [renamed, narrowed])
def test_an_adapter_of_another_model_is_refused(
    place: ConfigPlace, folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    retensor(folder, edit)
    with pytest.raises(ConfigError, match="does not fit its base"):
        load_model(find(place, model=str(folder)), dtype="float32", device="cpu")


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(
    place: ConfigPlace, made: Path, folder: Path
) -> None:
    source = find(place, model=str(folder))
    expected = tokenizer_digest(model_tokenizer(source.whole))
    assert tokenizer_digest(model_tokenizer(source)) == expected
    chat = make_model(folder.parent / "chat", tokenizer="chat")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(chat / name, folder / name)
    assert tokenizer_digest(model_tokenizer(source)) != expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 64}}, None),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"something_new": 3}, "something_new"),
    ],
    ids=str,
)
def test_a_plain_adapter_is_told_from_others(
    folder: Path, settings: dict[str, Any], reason: str | None
) -> None:
    change(folder, **settings)
    found = why_not_plain(folder)
    assert found is None if reason is None else reason in (found or "")
    assert largest_rank(folder) == (64 if "rank_pattern" in settings else 6)


def test_an_adapter_of_the_head_is_no_plain_one(folder: Path) -> None:
    retensor(folder, lambda tensors: {"base_model.model.lm_head.lora_A.weight": torch.ones(6, 32)})
    assert why_not_plain(folder) == "it changes lm_head"
