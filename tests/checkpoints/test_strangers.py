"""Checkpoints that somebody else wrote: looked at, read by their manifest alone, never run."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoints.opening import opened, opened_model
from pipeline.models.tokenizer import model_tokenizer
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from schemas.errors import DataError
from tests.support.checkpoints import exported, publish


@pytest.fixture
def local(config_path: Path, tmp_path: Path) -> Run:
    return open_run(load_config(config_path, [f"run.root={json.dumps(str(tmp_path / 'store'))}"]))


def changed_export(tmp_path: Path, name: str, **changes: object) -> Path:
    folder = exported(tmp_path / "made")
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("config.json", {"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ("config.json", {"vocab_size": 3}, "tokenizer.json: has a token with the id"),
        ("generation_config.json", {"eos_token_id": 10**9}, "eos_token_id is 1000000000"),
    ],
)
def test_stored_files_that_are_no_model_are_bad_data(
    local: Run, tmp_path: Path, name: str, changes: dict[str, object], words: str
) -> None:
    manifest = publish(local, changed_export(tmp_path, name, **changes))
    with pytest.raises(DataError, match=words) as caught, opened_model(local, manifest):
        raise AssertionError("it was opened")
    assert local.storage.url(local.checkpoint_folder(manifest.index)) in str(caught.value)


def test_files_that_the_manifest_does_not_name_are_not_read(local: Run, first: Path) -> None:
    manifest = publish(local, first)
    assert local.storage.local_root is not None
    folder = local.storage.local_root / local.checkpoint_folder(manifest.index)
    for name in ("model.safetensors", "adapter_config.json", "own.py"):
        (folder / name).write_bytes(b"planted")
    with opened_model(local, manifest) as source:
        assert {path.name for path in Path(source.location).iterdir()} == set(manifest.files)
        assert all(path.read_bytes() != b"planted" for path in Path(source.location).iterdir())


@pytest.mark.parametrize("name", ["../config.json", "/tmp/config.json", "a/b.json", ".."])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    run: Run, first: Path, name: str
) -> None:
    manifest = publish(run, first)
    files = {**manifest.files, name: manifest.files["config.json"]}
    moved = manifest.model_copy(update={"files": files})
    with pytest.raises(DataError, match="of the checkpoint's own folder"), opened(run, moved):
        raise AssertionError("it was opened")


def test_code_in_a_checkpoint_is_not_run(local: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = changed_export(
        tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]}
    )
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    manifest = publish(local, folder)
    assert "own.py" in manifest.files
    with opened_model(local, manifest) as source:
        assert not source.trust_remote_code
        model_tokenizer(source)
    assert not trace.exists()
