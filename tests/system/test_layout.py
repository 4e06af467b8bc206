"""The import names of opd are ours: no other distribution ships or shadows them."""

import importlib
import json
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

NAMES = ("pipeline", "cli", "schemas")


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves_to_this_repository(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == (REPOSITORY / name / "__init__.py").resolve()


def test_each_name_is_owned_by_opd_alone() -> None:
    strangers = {
        (distribution.name, file.parts[0])
        for distribution in metadata.distributions()
        for file in distribution.files or []
        if file.parts[0] in NAMES and distribution.name != "opd"
    }
    assert strangers == set()


def test_opd_is_installed_from_this_repository() -> None:
    text = metadata.distribution("opd").read_text("direct_url.json")
    assert text is not None
    url = json.loads(text)["url"]
    assert Path(url.removeprefix("file://")).resolve() == REPOSITORY.resolve()


def test_an_index_would_refuse_opd() -> None:
    classifiers = metadata.metadata("opd").get_all("Classifier") or []
    assert "Private :: Do Not Upload" in classifiers
