"""Configurations that are read from a path or from a store."""

import json
from pathlib import Path

import pytest

from pipeline.models.source import find_model
from pipeline.runs.configsource import read_config
from pipeline.store.storage import Storage
from schemas.errors import ConfigError
from tests.support.minimal import TEXT, parse
from tests.support.runs import Cli


def test_a_configuration_can_be_in_a_store(moto_storage: Storage, cli: Cli) -> None:
    moto_storage.put("conf/run.toml", TEXT.encode())
    url = moto_storage.url("conf/run.toml")
    config = read_config(url, ["run.seed=5"])
    assert config.run.seed == 5
    assert config.resolve("prompts.jsonl") == moto_storage.url("conf/prompts.jsonl")
    assert config.resolve("../data") == moto_storage.url("data")
    assert config.resolve("/models/x") == "/models/x"
    assert json.loads(cli("config", "show", "-c", url).stdout)["run"]["name"] == "demo"


def test_a_model_beside_such_a_configuration_is_refused(moto_storage: Storage) -> None:
    moto_storage.put("run.toml", TEXT.encode())
    config = read_config(moto_storage.url("run.toml"))
    with pytest.raises(ConfigError, match="models are not read from a store: give the full path"):
        find_model(config, config.student, "student")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://nowhere/run.toml", "no configuration at memory://nowhere/run.toml"),
        ("http://host/run.toml", "give a path, file://… or s3://bucket/key"),
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
    config = read_config(f"file://{tmp_path}/run.toml")
    assert config.resolve("student") == str(tmp_path / "student")
    assert parse().resolve("student") == "/base/student"
