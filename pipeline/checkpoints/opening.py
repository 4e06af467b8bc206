"""Opening of checkpoints: verified files in a local folder, and the base of an adapter."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.models.look.tensors import PLAIN_NAME
from pipeline.models.source import ModelSource, require_sound
from pipeline.runs.run import Run
from pipeline.store.disk.files import file_sha256
from pipeline.store.disk.scratch import scratch
from schemas.errors import DataError
from schemas.forms import TEMPLATES
from schemas.keys import manifest_key
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
        DataError: a file is missing or corrupt, the base is another one, or the files are of no
            model that can be loaded.
    """
    trust = run.config.student.trust_remote_code
    with ExitStack() as stack:
        base = None
        if manifest.base is not None:
            below = _base_of(run, manifest)
            folder = stack.enter_context(opened(run, below, weights=weights))
            base = ModelSource(str(folder), None, trust, stored=True)
        folder = stack.enter_context(opened(run, manifest, weights=weights))
        source = ModelSource(str(folder), None, trust, base, stored=True)
        where = run.storage.url(run.checkpoint_folder(manifest.index))
        require_sound(source, where, weights=weights)
        yield source


@contextmanager
def opened(run: Run, manifest: CheckpointManifest, *, weights: bool = True) -> Iterator[Path]:
    """Give a local folder with a checkpoint's verified files for the length of a block.

    Args:
        run: the run.
        manifest: the checkpoint.
        weights: also bring the weights; without them, settings and tokenizer can be read.

    Raises:
        DataError: a file is missing or corrupt, or the manifest names one that lies elsewhere.
    """
    root, prefix = run.storage.local_root, run.checkpoint_folder(manifest.index)
    _check_names(run, manifest, prefix)
    wanted = {
        name: shard
        for name, shard in manifest.files.items()
        if weights or not name.endswith(".safetensors")
    }
    if root is None:
        with scratch("checkpoint") as folder:
            for name, shard in wanted.items():
                (folder / name).parent.mkdir(exist_ok=True)
                run.storage.download(shard, folder / name)
            yield folder
        return
    for name, shard in wanted.items():
        _verify_local(root / prefix / name, shard, run)
    if _listed(root / prefix) <= {*manifest.files, Path(manifest_key(prefix)).name}:
        yield root / prefix
        return
    with scratch("checkpoint") as folder:  # what the manifest does not name is not to be read
        for name in manifest.files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to((root / prefix / name).resolve())
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


def _check_names(run: Run, manifest: CheckpointManifest, prefix: str) -> None:
    """Make sure that no file of a manifest leads out of its folder."""
    for name in manifest.files:
        if not PLAIN_NAME.fullmatch(name.removeprefix(f"{TEMPLATES}/")) or name in (".", ".."):
            raise DataError(
                f"the manifest of {run.storage.url(prefix)} names the file {name!r}, expected one "
                "of the checkpoint's own folder: another program wrote it. Restore the manifest, "
                "or delete the checkpoint"
            )


def _listed(folder: Path) -> set[str]:
    """Return what lies in a checkpoint's folder, by the names that a manifest gives."""
    inside = {path.name for path in folder.iterdir()}
    if TEMPLATES not in inside:
        return inside
    return inside - {TEMPLATES} | {f"{TEMPLATES}/{p.name}" for p in (folder / TEMPLATES).iterdir()}


def _verify_local(path: Path, shard: Shard, run: Run) -> None:
    if not path.is_file() or file_sha256(path) != shard.sha256:
        found = "missing" if not path.is_file() else "corrupt"
        raise DataError(
            f"{run.storage.url(shard.key)} is {found}; the checkpoint's manifest expects sha256 "
            f"{shard.sha256[:16]}…. Restore the file, or delete the checkpoint's folder and the "
            "manifest of the train stage that made it, and run again"
        )
