"""Configurations that are read from a path or from a store."""

import json
from pathlib import Path

import pytest

from pipeline.models.source import find_model
from pipeline.runs.configsource import load_config, read_config
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.minimal import TEXT
from tests.support.runs import Cli


def test_a_configuration_can_be_in_a_store(moto_storage: Storage, cli: Cli) -> None:
    moto_storage.put("conf/run.toml", TEXT.encode())
    url = moto_storage.url("conf/run.toml")
    read = read_config(url, ["run.seed=5"])
    assert read.config.run.seed == 5
    assert read.place.resolve("prompts.jsonl") == moto_storage.url("conf/prompts.jsonl")
    assert read.place.resolve("../data") == moto_storage.url("data")
    assert read.place.resolve("/models/x") == "/models/x"
    assert json.loads(cli("config", "show", "-c", url).stdout)["run"]["name"] == "demo"


def test_a_model_beside_such_a_configuration_is_refused(moto_storage: Storage) -> None:
    moto_storage.put("run.toml", TEXT.encode())
    read = read_config(moto_storage.url("run.toml"))
    with pytest.raises(ConfigError, match="models are not read from a store: give the full path"):
        find_model(read.place, read.config.student, "student")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://nowhere/run.toml", "no configuration at memory://nowhere/run.toml"),
        ("http://host/run.toml", "scheme 'http' is not supported; use a path, file://… or s3://"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_an_error(location: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(location)


def test_a_configuration_that_is_not_text_is_an_error(moto_storage: Storage) -> None:
    moto_storage.put("run.toml", b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        read_config(moto_storage.url("run.toml"))


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TEXT)
    read = read_config(f"file://{tmp_path}/run.toml")
    assert read.place.resolve("student") == str(tmp_path / "student")


# --- files ---


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "run.toml"
    path.parent.mkdir()
    path.write_text(TEXT)
    read = load_config(path, ["run.seed=7"])
    place = read.place
    assert read.config.run.seed == 7
    assert place.resolve("prompts.jsonl") == str(tmp_path / "conf" / "prompts.jsonl")
    assert place.resolve("/abs/x") == "/abs/x"
    assert place.resolve("s3://bucket/x") == "s3://bucket/x"
    assert place.resolve("~/x") == str(Path.home() / "x")


def test_a_missing_file_is_a_config_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="examples"):
        load_config(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"did you mean .*/run\.toml\?"):
        load_config(tmp_path / "runn.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[run\n", b"run = 1\nrun = 2\n"])
def test_a_file_that_is_no_toml_is_a_config_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        load_config(path)


def test_a_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path)
