"""Models on disk: found or refused in plain words, identified by content."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.source import (
    ModelSource,
    find_model,
    load_settings,
    model_identity,
    whole_settings,
)
from pipeline.runs.configsource import load_config
from pipeline.store.place import ConfigPlace
from schemas.config.models import TeacherSection
from schemas.errors import ConfigError
from tests.support import tiny
from tests.support.modelfolders import (
    COMMIT,
    WEIGHTS,
    break_config,
    drop_weights,
    edit_config,
    source_of,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ConfigPlace:
    return load_config(tiny.write_run(tmp_path_factory.mktemp("run"))).place


def find(place: ConfigPlace, **fields: Any) -> ModelSource:
    return find_model(place, TeacherSection(**fields), "teachers.big")


def test_a_folder_is_found_from_the_folder_of_the_toml(place: ConfigPlace) -> None:
    found = find(place, model="student")
    assert found == ModelSource(place.resolve("student"), None, False)
    assert found.is_folder and Path(found.location).is_absolute()
    assert find(place, model=place.resolve("student"), trust_remote_code=True) == ModelSource(
        place.resolve("student"), None, True
    )


def test_a_hub_id_comes_with_its_commit(place: ConfigPlace) -> None:
    found = find(place, model="org/model", revision=COMMIT)
    assert found == ModelSource("org/model", COMMIT, False)
    assert not found.is_folder
    assert model_identity(found) == {"hub": "org/model", "revision": COMMIT}


def refusal(place: ConfigPlace, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        find(place, **fields)
    assert "teachers.big." in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_named_with_both_ways_out(place: ConfigPlace) -> None:
    found = refusal(place, model="org/model")
    assert place.resolve("org/model") in found and "'org/model'" in found
    assert "Correct the path" in found and "add teachers.big.revision" in found


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT[:39]])
def test_a_revision_that_may_move_is_refused(place: ConfigPlace, revision: str) -> None:
    found = refusal(place, model="org/model", revision=revision)
    assert repr(revision) in found and "40 characters" in found


def test_a_revision_of_a_folder_is_refused(place: ConfigPlace) -> None:
    assert "remove the revision" in refusal(place, model="student", revision=COMMIT)


def test_a_folder_without_a_config_is_no_model(place: ConfigPlace) -> None:
    assert "no config.json" in refusal(place, model=".")


def test_settings_are_those_of_the_text_model(whole: Path) -> None:
    settings = load_settings(source_of(whole))
    assert (settings.num_hidden_layers, settings.hidden_size) == (1, 32)


def test_identity_is_that_of_the_content_and_not_of_the_folder(whole: Path, folder: Path) -> None:
    expected = model_identity(source_of(whole))
    assert set(expected) == {"weights", "config"}
    assert model_identity(source_of(folder)) == expected
    edit_config(folder, _name_or_path="/elsewhere", transformers_version="4.0.0")
    assert model_identity(source_of(folder)) == expected
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    assert model_identity(source_of(folder)) == expected


def test_one_other_bit_of_a_weight_is_another_model(whole: Path, folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))
    expected, found = model_identity(source_of(whole)), model_identity(source_of(folder))
    assert found["weights"] != expected["weights"] and found["config"] == expected["config"]


@pytest.mark.parametrize(
    "changes", [{"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_theta": 5.0}}, {"new_key": 1}]
)
def test_another_setting_is_another_model(
    whole: Path, folder: Path, changes: dict[str, Any]
) -> None:
    edit_config(folder, **changes)
    expected, found = model_identity(source_of(whole)), model_identity(source_of(folder))
    assert found["config"] != expected["config"] and found["weights"] == expected["weights"]


def test_a_further_weight_file_is_another_model(whole: Path, folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "more.safetensors")
    assert model_identity(source_of(folder)) != model_identity(source_of(whole))


@pytest.mark.parametrize("damage", [drop_weights, break_config])
def test_a_damaged_folder_has_no_identity(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=str(folder)):
        model_identity(source_of(folder))


def test_settings_are_those_of_the_file_as_it_is_and_the_callers_own(folder: Path) -> None:
    first = whole_settings(source_of(folder))
    first.hidden_size, first.rope_parameters = 1, None
    again = whole_settings(source_of(folder))
    assert again.hidden_size > 1 and again.rope_parameters, "one caller changed another's settings"
    edit_config(folder, rms_norm_eps=0.5)
    assert whole_settings(source_of(folder)).rms_norm_eps == 0.5
    copy = shutil.copytree(folder, folder.with_name("other"))
    assert whole_settings(source_of(copy)).name_or_path == str(copy)
