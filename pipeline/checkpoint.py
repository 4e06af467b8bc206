"""Checkpoints: Hugging Face or adapter folders in the store, seen whole or not at all.

Promises: weight files are named after their content, and the index or the adapter that decides is
create-only, so two attempts at one checkpoint never mix; tied heads are written out; the manifest
comes last.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.adapters import adapter_settings, settings_digest
from pipeline.commit import create_record
from pipeline.decidingfile import INDEX, deciding_file, manifest_within, with_manifest
from pipeline.models import ModelSource
from pipeline.run import Run
from pipeline.storage import file_sha256
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.manifest import CheckpointManifest, Shard

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MAX_FILE = "4GB"


def export_folder(
    model: "PreTrainedModel", tokenizer: Any, state: "dict[str, Tensor]", folder: Path
) -> None:
    """Write a Hugging Face folder whose weight files are named after their content.

    Args:
        model: gives architecture and settings; its own weights are not used.
        tokenizer: saved beside the weights.
        state: full state, on any device; a tied head may be missing.
        folder: an empty folder.

    Raises:
        DataError: a tensor is empty, as partitioned parameters are when they were not gathered.
    """
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise DataError(f"export of {len(empty)} empty tensors, such as {empty[0]}: not gathered")
    model.save_pretrained(folder, state_dict=state, max_shard_size=MAX_FILE)
    tokenizer.save_pretrained(folder)
    _write_tied_head(model, state, folder)
    _name_by_content(folder)


def publish_checkpoint(
    run: Run,
    index: int | None,
    folder: Path,
    *,
    origin: dict[str, Any],
    state: str | None,
    base: CheckpointManifest | None = None,
) -> CheckpointManifest:
    """Make a folder the checkpoint of a number, or return the one that stands.

    Args:
        run: the run.
        index: number of the checkpoint; None for the base of the run's adapters.
        folder: what `export_folder` or `lora.write_adapter` wrote.
        origin: where the weights come from.
        state: key of the learner's state, if any.
        base: what the folder's adapter belongs to.
    """
    name, storage = deciding_file(folder), run.storage
    key = f"{run.checkpoint_folder(index)}/{name}"
    data = storage.get(key)
    if data is None:  # where one stands its files are whole, and must not be written again
        begun = CheckpointManifest(
            index=index,
            policy_version="",
            origin=origin,
            state=state,
            files={},
            base=None if base is None else base.policy_version,
        )
        data = _upload(run, begun, folder)
    text = manifest_within(data)
    manifest = CheckpointManifest.from_bytes(text.encode(), where=storage.url(key))
    whole = {**manifest.files, name: _shard(key, data)}
    manifest = manifest.model_copy(update={"files": whole})
    return create_record(storage, f"{run.checkpoint_folder(index)}/manifest.json", manifest)


@contextmanager
def opened_model(
    run: Run, manifest: CheckpointManifest, *, weights: bool = True
) -> Iterator[ModelSource]:
    """Give a checkpoint as a model for the length of a block, with its base where it is an adapter.

    Args:
        run: the run.
        manifest: the checkpoint.
        weights: also bring the weights; without them, settings and tokenizer can be read.

    Raises:
        DataError: a file is missing or corrupt, or the base is another one.
    """
    trust = run.config.student.trust_remote_code
    with ExitStack() as stack:
        base = None
        if manifest.base is not None:
            below = _base_of(run, manifest)
            folder = stack.enter_context(opened(run, below, weights=weights))
            base = ModelSource(str(folder), None, trust)
        folder = stack.enter_context(opened(run, manifest, weights=weights))
        yield ModelSource(str(folder), None, trust, base)


@contextmanager
def opened(run: Run, manifest: CheckpointManifest, *, weights: bool = True) -> Iterator[Path]:
    """Give a local folder with a checkpoint's verified files for the length of a block.

    Args:
        run: the run.
        manifest: the checkpoint.
        weights: also bring the weights; without them, settings and tokenizer can be read.

    Raises:
        DataError: a file is missing or corrupt.
    """
    root = run.storage.local_root
    wanted = {
        name: shard
        for name, shard in manifest.files.items()
        if weights or not name.endswith(".safetensors")
    }
    if root is not None:
        for shard in wanted.values():
            _verify_local(root / shard.key, shard, run)
        yield root / run.checkpoint_folder(manifest.index)
        return
    folder = Path(tempfile.mkdtemp(prefix="opd-checkpoint-"))
    try:
        for name, shard in wanted.items():
            run.storage.download(shard, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upload(run: Run, begun: CheckpointManifest, folder: Path) -> bytes:
    """Write a folder's files and last, create-only, the one that decides; return what stands."""
    prefix, storage, last = run.checkpoint_folder(begun.index), run.storage, deciding_file(folder)
    names = sorted(path.name for path in folder.iterdir() if path.name != last)
    files = {name: storage.upload(f"{prefix}/{name}", folder / name) for name in names}
    version = _policy_version(folder, files, begun.base)
    manifest = begun.model_copy(update={"files": files, "policy_version": version})
    data = with_manifest(folder / last, manifest.model_dump_json())
    if storage.create(f"{prefix}/{last}", data):
        return data
    return storage.get(f"{prefix}/{last}") or b""


def _policy_version(folder: Path, files: dict[str, Shard], base: str | None) -> str:
    if base is not None:  # not where the base lies, nor who made the adapter
        digest = file_sha256(folder / deciding_file(folder))
        settings = settings_digest(adapter_settings(folder))
        return fingerprint({"adapter": digest, "settings": settings, "base": base})
    weights = sorted(s.sha256 for name, s in files.items() if name.endswith(".safetensors"))
    return fingerprint({"weights": weights, "config": files["config.json"].sha256})


def _base_of(run: Run, manifest: CheckpointManifest) -> CheckpointManifest:
    base = run.checkpoint(None)
    if base is None or base.policy_version != manifest.base:
        raise DataError(
            f"{run.storage.url(run.checkpoint_folder(None))} should hold the base "
            f"{manifest.base} that checkpoint {manifest.index} is an adapter of, and holds "
            f"{'none' if base is None else base.policy_version}: restore it, or delete the run"
        )
    return base


def _write_tied_head(model: "PreTrainedModel", state: "dict[str, Tensor]", folder: Path) -> None:
    """Add `lm_head.weight` to the weight file of the embedding it is tied to.

    Engines that reload such files in place keep the old head otherwise (vllm#51665).
    """
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    from safetensors.torch import load_file, save_file

    embedding = model.get_input_embeddings()
    modules = {id(module): name for name, module in model.named_modules()}
    source = f"{modules[id(embedding)]}.weight"
    head = f"{modules[id(model.get_output_embeddings())]}.weight"  # type: ignore[no-untyped-call] # transformers' gap
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if source in tensors and head not in tensors:
            tensors[head] = tensors[source].clone()
            save_file(tensors, path, metadata={"format": "pt"})


def _name_by_content(folder: Path) -> None:
    """Rename weight files to `model-<digest>.safetensors` and write the index that names them."""
    from safetensors import safe_open

    weight_map, total = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        name = f"model-{file_sha256(path)[:16]}.safetensors"
        with safe_open(path, framework="pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), name))
        total += path.stat().st_size
        path.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))


def _shard(key: str, data: bytes) -> Shard:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    return Shard(key=key, sha256=digest, bytes=len(data), rows=0, tokens=0)


def _verify_local(path: Path, shard: Shard, run: Run) -> None:
    if not path.exists() or file_sha256(path) != shard.sha256:
        found = "missing" if not path.exists() else "corrupt"
        raise DataError(
            f"{run.storage.url(shard.key)} is {found}; the checkpoint's manifest expects sha256 "
            f"{shard.sha256[:16]}…. Restore the file, or delete the checkpoint's folder and the "
            "manifest of the train stage that made it, and run again"
        )
