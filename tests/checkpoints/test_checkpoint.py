"""Checkpoints: exported faithfully, published once, verified when they are opened."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.checkpoints import folder as checkpoint_folder
from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.opening import opened, opened_model
from pipeline.checkpoints.publishing import publish_checkpoint
from pipeline.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_settings
from pipeline.models.loading import load_model
from pipeline.models.lora import read_adapter, write_adapter
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import load_tokenizer
from pipeline.models.tokenizeridentity import tokenizer_digest
from pipeline.quickstart.addition import make_tokenizer
from pipeline.runs.run import Run, open_run
from pipeline.store.storage import Storage, file_sha256
from schemas.config.file import load_config
from schemas.errors import DataError
from schemas.records.training import CheckpointManifest
from tests.support import tiny

PROBE = torch.tensor([[4, 9, 14, 7, 15, 8]])
ORIGIN = {"run": "tiny", "round": 0, "step": 2}
MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, config_path: Path, tmp_path: Path) -> Run:
    """Return a run with a fresh store of each kind in turn."""
    memory = f"memory://{abs(hash(request.node.nodeid))}"
    root = memory if request.param == "memory" else str(tmp_path / "store")
    return open_run(load_config(config_path, [f"run.root={json.dumps(root)}"]))


def model_of(folder: Path) -> Any:
    return load_model(ModelSource(str(folder), None, False), dtype="float32", device="cpu")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=PROBE, use_cache=False).logits
    return found


def exported(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Return an exported random model below a folder."""
    made = tiny.make_model(folder / f"model-{seed}", seed=seed, **settings)
    target = folder / f"export-{seed}"
    target.mkdir()
    model = model_of(made)
    export_folder(model, make_tokenizer(), model.state_dict(), target)
    return target


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export; tests only read it."""
    return exported(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of other weights; tests only read it."""
    return exported(tmp_path_factory.mktemp("second"), seed=1)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_gives_the_same_logits_and_the_same_tokenizer(
    tmp_path: Path, arch: str, tied: bool
) -> None:
    folder = exported(tmp_path, arch=arch, tied=tied)
    expected = logits(model_of(tmp_path / "model-0"))
    assert torch.equal(logits(model_of(folder)), expected)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain), expected)
    tokenizer = load_tokenizer(str(folder), revision=None, trust_remote_code=False)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(make_tokenizer())


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_always_written_out(tmp_path: Path, tied: bool) -> None:
    tensors = tensors_of(exported(tmp_path, tied=tied))
    same = torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert same == tied


def test_a_state_without_its_tied_head_is_whole(tmp_path: Path) -> None:
    model, target = model_of(tiny.make_model(tmp_path / "model")), tmp_path / "export"
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    target.mkdir()
    export_folder(model, make_tokenizer(), state, target)
    assert torch.equal(tensors_of(target)["lm_head.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(logits(model_of(target)), logits(model))


def test_the_given_state_is_written_and_not_the_models_own(tmp_path: Path) -> None:
    model, other = (model_of(tiny.make_model(tmp_path / str(s), seed=s)) for s in (1, 2))
    target = tmp_path / "export"
    target.mkdir()
    export_folder(model, make_tokenizer(), other.state_dict(), target)
    assert torch.equal(logits(model_of(target)), logits(other))
    assert not torch.equal(logits(model), logits(other))


def test_weights_that_were_not_gathered_are_refused(tmp_path: Path) -> None:
    model = model_of(tiny.make_model(tmp_path / "model"))
    state = model.state_dict() | {"model.norm.weight": torch.empty(0)}
    with pytest.raises(DataError, match="1 empty tensors, such as model.norm.weight"):
        export_folder(model, make_tokenizer(), state, tmp_path)


@pytest.mark.parametrize("max_file", ["4GB", "20KB"])
def test_weight_files_are_named_by_content_and_the_index_names_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_file: str
) -> None:
    monkeypatch.setattr(checkpoint_folder, "MAX_FILE", max_file)
    folder = exported(tmp_path)
    paths = sorted(folder.glob("*.safetensors"))
    assert (len(paths) > 1) == (max_file == "20KB")
    index = json.loads((folder / INDEX).read_text())
    assert set(index["weight_map"].values()) == {path.name for path in paths}
    for path in paths:
        digest = path.name.removeprefix("model-").removesuffix(".safetensors")
        assert file_sha256(path).startswith(digest) and len(digest) == 16
        named = {name for name, file in index["weight_map"].items() if file == path.name}
        assert named == set(load_file(path))
    assert torch.equal(logits(model_of(folder)), logits(model_of(tmp_path / "model-0")))


def publish(run: Run, folder: Path) -> CheckpointManifest:
    return publish_checkpoint(run, 1, folder, origin=ORIGIN, state="state.json")


def assert_whole(run: Run, manifest: CheckpointManifest, expected: Path) -> None:
    """Check that a checkpoint opens, verified, and is the one that was exported to a folder."""
    with opened(run, manifest) as folder:
        assert {p.name for p in folder.iterdir()} >= {p.name for p in expected.iterdir()}
        assert torch.equal(logits(model_of(folder)), logits(model_of(expected)))
        load_tokenizer(str(folder), revision=None, trust_remote_code=False)


def test_a_published_checkpoint_opens_as_it_was_exported(run: Run, first: Path) -> None:
    assert run.checkpoint(1) is None
    manifest = publish(run, first)
    assert run.checkpoint(1) == manifest
    assert (manifest.index, manifest.origin, manifest.state) == (1, ORIGIN, "state.json")
    assert set(manifest.files) == {p.name for p in first.iterdir()}
    assert_whole(run, manifest, first)


def test_the_version_is_that_of_the_weights(
    config_path: Path, tmp_path: Path, first: Path, second: Path
) -> None:
    versions = []
    for name, folder in (("a", first), ("b", exported(tmp_path)), ("c", second)):
        root = f"run.root={json.dumps(str(tmp_path / 'store' / name))}"
        versions.append(publish(open_run(load_config(config_path, [root])), folder).policy_version)
    assert versions[0] == versions[1] != versions[2]


def test_the_first_of_two_attempts_stands_and_is_whole(run: Run, first: Path, second: Path) -> None:
    stands = publish(run, first)
    assert publish(run, second) == stands == run.checkpoint(1)
    assert_whole(run, stands, first)
    assert publish(run, first) == stands


def test_a_later_attempt_by_other_software_leaves_the_first_whole(
    run: Run, tmp_path: Path, first: Path, second: Path
) -> None:
    other = Path(shutil.copytree(second, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"transformers_version": "9"}))
    stands = publish(run, first)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    assert publish(run, other) == stands
    assert_whole(run, stands, first)


def test_an_attempt_that_died_before_its_manifest_is_finished_by_the_next(
    run: Run, first: Path, second: Path
) -> None:
    stands = publish(run, first)
    run.storage.delete(f"{run.checkpoint_folder(1)}/manifest.json")
    assert publish(run, second) == stands
    assert_whole(run, stands, first)


class Overtaken(Storage):
    """A store in which a rival publishes just before we do."""

    def __init__(self, rival: Callable[[], object], run: Run) -> None:
        """Name what the rival does, and share the run's store."""
        super().__init__(run.storage.root)
        self._rival = rival

    def create(self, key: str, data: bytes) -> bool:
        """Let the rival go first once the index is about to be written."""
        if key.endswith((INDEX, ADAPTER_WEIGHTS)):
            self._rival()
        return super().create(key, data)


def test_of_two_attempts_at_once_one_stands_and_is_whole(
    run: Run, first: Path, second: Path
) -> None:
    slow = Run(run.config, Overtaken(lambda: publish(run, first), run))
    stands = publish(slow, second)
    assert stands == run.checkpoint(1)
    assert_whole(run, stands, first)


def test_files_of_a_dead_attempt_do_not_enter_the_next(run: Run, first: Path, second: Path) -> None:
    publish(run, first)
    for name in ("manifest.json", INDEX):
        run.storage.delete(f"{run.checkpoint_folder(1)}/{name}")
    stands = publish(run, second)
    assert set(stands.files) == {p.name for p in second.iterdir()}
    assert_whole(run, stands, second)


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


# --- checkpoints of an adapter ---


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, first: Path) -> list[Path]:
    """Return exports of two adapters of `first`; tests only read them."""
    found = []
    for seed in (1, 2):
        raw = tiny.make_adapter(tmp_path_factory.mktemp("raw"), first, seed=seed)
        found.append(tmp_path_factory.mktemp("adapter"))
        write_adapter(found[-1], adapter_settings(raw), read_adapter(raw), make_tokenizer())
    return found


def publish_base(run: Run, first: Path) -> CheckpointManifest:
    return publish_checkpoint(run, None, first, origin=ORIGIN, state=None)


def publish_adapter(run: Run, folder: Path, base: CheckpointManifest) -> CheckpointManifest:
    return publish_checkpoint(run, 1, folder, origin=ORIGIN, state="state.json", base=base)


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
    stands = publish_adapter(Run(run.config, rival), adapters[1], base)
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
