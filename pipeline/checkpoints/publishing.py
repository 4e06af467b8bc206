"""Publication of a checkpoint: two attempts never mix, and the manifest comes last."""

import hashlib
from pathlib import Path
from typing import Any

from pipeline.checkpoints.claim import deciding_file, manifest_within, with_manifest
from pipeline.models.adapters import adapter_settings, settings_digest
from pipeline.runs.run import Run
from pipeline.store.disk.files import file_sha256
from pipeline.store.records import create_record
from pipeline.store.storage import Storage
from schemas.fingerprint import fingerprint
from schemas.keys import manifest_key
from schemas.records.shards import Shard
from schemas.records.training import CheckpointManifest


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
    data = _read_claim(storage, key)
    if data is None:  # where one stands its files are whole, and must not be written again
        below = None if base is None else base.policy_version
        files = _upload(run, run.checkpoint_folder(index), folder)
        begun = CheckpointManifest(
            index=index,
            policy_version=_policy_version(folder, files, below),
            origin=origin,
            state=state,
            files=files,
            base=below,
        )
        data = with_manifest(folder / name, begun.to_bytes().decode().rstrip())
        if not storage.create(key, data):
            data = _read_claim(storage, key) or b""
    manifest = _begun_manifest(data, storage.url(key))
    whole = {**manifest.files, name: _shard(key, data)}
    manifest = manifest.model_copy(update={"files": whole})
    return create_record(storage, manifest_key(run.checkpoint_folder(index)), manifest)


def holds_weights(manifest: CheckpointManifest, folder: Path) -> bool:
    """Return whether a checkpoint has the weights of a folder, not those of another attempt."""
    weights = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    stored = {name: shard.sha256 for name, shard in manifest.files.items()}
    return bool(weights) and all(stored.get(one.name) == file_sha256(one) for one in weights)


def _read_claim(storage: Storage, key: str) -> bytes | None:
    """Return the file that decides, once it holds a manifest; None where there is none yet."""

    def checked(data: bytes) -> bytes:
        _begun_manifest(data, storage.url(key))
        return data

    return storage.read_checked(key, checked)


def _begun_manifest(data: bytes, where: str) -> CheckpointManifest:
    text = manifest_within(data, where=where)
    return CheckpointManifest.from_bytes(text.encode(), where=where)


def _upload(run: Run, prefix: str, folder: Path) -> dict[str, Shard]:
    """Write a folder's files, without the one that decides; return them by name."""
    last = deciding_file(folder)
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in files if name != last)
    return {name: run.storage.upload(f"{prefix}/{name}", folder / name) for name in names}


def _policy_version(folder: Path, files: dict[str, Shard], base: str | None) -> str:
    if base is not None:  # not where the base lies, nor who made the adapter
        digest = file_sha256(folder / deciding_file(folder))
        settings = settings_digest(adapter_settings(folder))
        return fingerprint({"adapter": digest, "settings": settings, "base": base})
    weights = sorted(s.sha256 for name, s in files.items() if name.endswith(".safetensors"))
    return fingerprint({"weights": weights, "config": files["config.json"].sha256})


def _shard(key: str, data: bytes) -> Shard:
    digest = hashlib.sha256(data).hexdigest()
    return Shard(key=key, sha256=digest, bytes=len(data), rows=0, tokens=0)
