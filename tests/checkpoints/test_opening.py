"""Checkpoints are verified when they are opened, and leave nothing behind."""

import shutil
import tempfile
from pathlib import Path

import pytest

from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.opening import opened
from pipeline.models.tokenizer import load_tokenizer
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.errors import DataError
from tests.support.checkpoints import publish


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
@pytest.mark.parametrize("suffix", [".safetensors", "config.json", INDEX, "tokenizer.json"])
def test_a_damaged_file_is_named(run: Run, first: Path, damage: str, suffix: str) -> None:
    manifest = publish(run, first)
    shard = next(s for name, s in sorted(manifest.files.items()) if name.endswith(suffix))
    data = bytearray(run.storage.get(shard.key) or b"")
    data[len(data) // 2] ^= 1
    if damage == "missing":
        run.storage.delete(shard.key)
    else:
        run.storage.put(shard.key, bytes(data))
    with pytest.raises(DataError, match=f"{shard.key} is {damage}"), opened(run, manifest):
        raise AssertionError("a damaged checkpoint was opened")


def test_settings_and_tokenizer_open_without_the_weights(run: Run, first: Path) -> None:
    manifest = publish(run, first)
    for name, shard in manifest.files.items():
        if name.endswith(".safetensors"):
            run.storage.delete(shard.key)
    with opened(run, manifest, weights=False) as folder:
        assert (folder / "config.json").is_file()
        load_tokenizer(str(folder), revision=None, trust_remote_code=False)


def test_a_downloaded_checkpoint_leaves_nothing_behind(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Path
) -> None:
    made = open_run(load_config(config_path, ["run.root=memory://leaves-nothing-behind"]))
    manifest = publish(made, first)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with opened(made, manifest) as folder:
        assert folder.parent == scratch
        shutil.rmtree(folder)  # whatever a model's code does there
    assert list(scratch.iterdir()) == []
    with pytest.raises(KeyError), opened(made, manifest):
        raise KeyError
    made.storage.delete(manifest.files["config.json"].key)
    with pytest.raises(DataError), opened(made, manifest):
        pass
    assert list(scratch.iterdir()) == []
