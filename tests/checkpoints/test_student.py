"""Checkpoints of an adapter: opened with their base, published once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.publishing import publish_checkpoint
from pipeline.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_settings
from pipeline.models.loading import load_model
from pipeline.models.lora import read_adapter, write_adapter
from pipeline.models.source import ModelSource
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.errors import DataError
from schemas.records.training import CheckpointManifest
from tests.support import tiny
from tests.support.checkpoints import ORIGIN, STATE, Overtaken, logits


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, first: Path) -> list[Path]:
    """Return exports of two adapters of `first`; tests only read them."""
    found = []
    for seed in (1, 2):
        raw = tiny.make_adapter(tmp_path_factory.mktemp("raw"), first, seed=seed)
        found.append(tmp_path_factory.mktemp("adapter"))
        write_adapter(found[-1], adapter_settings(raw), read_adapter(raw))
    return found


def publish_base(run: Run, first: Path) -> CheckpointManifest:
    return publish_checkpoint(run, None, first, origin=ORIGIN, state=None)


def publish_adapter(run: Run, folder: Path, base: CheckpointManifest) -> CheckpointManifest:
    return publish_checkpoint(run, 1, folder, origin=ORIGIN, state=STATE, base=base)


def adapted(location: Path | str, first: Path) -> Any:
    base = ModelSource(str(first), None, False)
    source = ModelSource(str(location), None, False, base)
    return logits(load_model(source, dtype="float32", device="cpu"))


def assert_adapter(run: Run, manifest: CheckpointManifest, expected: Path, first: Path) -> None:
    """Check that an adapter opens with its base, verified, and is the one that was exported."""
    with opened_model(run, manifest) as source:
        found = logits(load_model(source, dtype="float32", device="cpu"))
        assert torch.equal(found, adapted(expected, first))
        assert torch.equal(adapted(source.location, first), found)  # as PEFT opens it
        assert {p.name for p in Path(source.location).iterdir()} >= set(manifest.files)


def test_an_adapter_opens_with_its_base(run: Run, first: Path, adapters: list[Path]) -> None:
    base = publish_base(run, first)
    manifest = publish_adapter(run, adapters[0], base)
    assert run.checkpoint(1) == manifest and run.checkpoint(None) == base
    assert (manifest.base, base.base, base.index) == (base.policy_version, None, None)
    assert set(manifest.files) == {p.name for p in adapters[0].iterdir()}
    assert sum(s.bytes for s in manifest.files.values()) < sum(s.bytes for s in base.files.values())
    assert_adapter(run, manifest, adapters[0], first)
    with opened_model(run, manifest, weights=False) as source:
        assert (Path(source.whole.location) / "config.json").is_file()


def test_the_version_of_an_adapter_is_that_of_its_weights_and_its_base(
    config_path: Path, tmp_path: Path, first: Path, second: Path, adapters: list[Path]
) -> None:
    moved = Path(shutil.copytree(adapters[0], tmp_path / "moved"))
    settings = adapter_settings(moved) | {"base_model_name_or_path": "elsewhere"}
    (moved / ADAPTER_CONFIG).write_text(json.dumps(settings))
    strong = Path(shutil.copytree(adapters[0], tmp_path / "strong"))
    (strong / ADAPTER_CONFIG).write_text(json.dumps(settings | {"lora_alpha": 99}))
    pairs = [(first, adapters[0]), (first, moved), (first, adapters[1]), (second, moved)]
    versions = []
    for index, (base, folder) in enumerate([*pairs, (first, strong)]):
        root = f"run.root={json.dumps(str(tmp_path / 'store' / str(index)))}"
        run = open_run(load_config(config_path, [root]))
        versions.append(publish_adapter(run, folder, publish_base(run, base)).policy_version)
    assert versions[0] == versions[1] and len(set(versions)) == 4


def test_the_first_of_two_adapters_stands_and_is_whole(
    run: Run, first: Path, adapters: list[Path]
) -> None:
    base = publish_base(run, first)
    stands = publish_adapter(run, adapters[0], base)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    assert publish_adapter(run, adapters[1], base) == stands
    assert_adapter(run, stands, adapters[0], first)


def test_of_two_adapters_at_once_one_stands_and_is_whole(
    run: Run, first: Path, adapters: list[Path]
) -> None:
    base = publish_base(run, first)
    rival = Overtaken(lambda: publish_adapter(run, adapters[0], base), run)
    stands = publish_adapter(replace(run, storage=rival), adapters[1], base)
    assert stands == run.checkpoint(1)
    assert_adapter(run, stands, adapters[0], first)


def test_a_damaged_adapter_or_base_is_named(run: Run, first: Path, adapters: list[Path]) -> None:
    manifest = publish_adapter(run, adapters[0], publish_base(run, first))
    key = manifest.files[ADAPTER_WEIGHTS].key
    data = run.storage.get(key) or b""
    run.storage.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{key} is corrupt"), opened_model(run, manifest):
        pass
    run.storage.put(key, data)
    run.storage.delete(f"{run.checkpoint_folder(None)}/manifest.json")
    with pytest.raises(DataError, match="should hold the base"), opened_model(run, manifest):
        pass
