"""Relative paths of a configuration: from its folder, or from where it is in a store."""

from pathlib import Path

import pytest

from pipeline.store.place import ConfigPlace


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("prompts.jsonl", "/conf/prompts.jsonl"),
        ("../data/x", "/data/x"),
        (".", "/conf"),
        ("/abs/x", "/abs/x"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("file:///x", "file:///x"),
        ("~/x", str(Path.home() / "x")),
    ],
)
def test_a_path_starts_from_the_folder(location: str, expected: str) -> None:
    assert ConfigPlace("/conf").resolve(location) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("prompts.jsonl", "s3://bucket/conf/prompts.jsonl"),
        ("../data", "s3://bucket/data"),
        ("/models/x", "/models/x"),
        ("s3://other/x", "s3://other/x"),
        ("~/x", str(Path.home() / "x")),
    ],
)
def test_a_path_starts_from_the_url_of_a_configuration_in_a_store(
    location: str, expected: str
) -> None:
    assert ConfigPlace("s3://bucket/conf").resolve(location) == expected


def test_the_working_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ConfigPlace("/conf").resolve("x") == "/conf/x"
