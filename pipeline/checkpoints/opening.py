"""Opening of checkpoints: verified files in a local folder, and the base of an adapter."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.models.source import ModelSource
from pipeline.runs.run import Run
from pipeline.store.scratch import scratch
from pipeline.store.storage import file_sha256
from schemas.errors import DataError
from schemas.records.shards import Shard
from schemas.records.training import CheckpointManifest


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
    with scratch("checkpoint") as folder:
        for name, shard in wanted.items():
            run.storage.download(shard, folder / name)
        yield folder


def _base_of(run: Run, manifest: CheckpointManifest) -> CheckpointManifest:
    base = run.checkpoint(None)
    if base is None or base.policy_version != manifest.base:
        raise DataError(
            f"{run.storage.url(run.checkpoint_folder(None))} should hold the base "
            f"{manifest.base} that checkpoint {manifest.index} is an adapter of, and holds "
            f"{'none' if base is None else base.policy_version}: restore it, or delete the run"
        )
    return base


def _verify_local(path: Path, shard: Shard, run: Run) -> None:
    if not path.exists() or file_sha256(path) != shard.sha256:
        found = "missing" if not path.exists() else "corrupt"
        raise DataError(
            f"{run.storage.url(shard.key)} is {found}; the checkpoint's manifest expects sha256 "
            f"{shard.sha256[:16]}…. Restore the file, or delete the checkpoint's folder and the "
            "manifest of the train stage that made it, and run again"
        )
