"""A checkpoint as a plain folder of Hugging Face or PEFT: usual names, nothing of opd's own.

Promises: weights are those of the checkpoint, byte for byte, or its adapter merged into its base
and loaded again before it counts.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoints.claim import deciding_file, without_manifest
from pipeline.checkpoints.faithful import require_same
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.opening import opened, opened_model
from pipeline.checkpoints.probe import PREFIX
from pipeline.models.loading import load_model
from pipeline.models.look.tensors import INDEX, SINGLE
from pipeline.runs.run import Run
from schemas.records.training import CheckpointManifest


def write_checkpoint(run: Run, manifest: CheckpointManifest, folder: Path) -> None:
    """Write the files of a checkpoint into an empty folder.

    Raises:
        DataError: a file is missing or corrupt.
    """
    with opened(run, manifest) as place:
        for name in manifest.files:
            if not name.startswith(PREFIX):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(place / name, folder / name)
    decides = folder / deciding_file(folder)
    decides.write_bytes(without_manifest(decides))
    _name_as_usual(folder)


def write_merged(run: Run, manifest: CheckpointManifest, folder: Path) -> None:
    """Write the whole model that an adapter makes of its base into an empty folder.

    Raises:
        ConfigError: it cannot be merged, or what was written is not what was merged.
        DataError: a file is missing or corrupt.
    """
    with opened_model(run, manifest) as source:
        model = load_model(source, dtype=run.config.student.dtype, device="cpu")
        export_folder(model, model.state_dict(), source=source, folder=folder)
        made = replace(source, location=str(folder), revision=None, base=None, stored=False)
        require_same(model, made, source, allowed=run.config.train.verify_tolerance)
    _name_as_usual(folder)


def _name_as_usual(folder: Path) -> None:
    """Give weight files that are named by their content the names that other programs expect."""
    path = folder / INDEX
    if not path.is_file():
        return  # an adapter
    index = json.loads(path.read_bytes())
    names = sorted(set(index["weight_map"].values()))
    count = len(names)
    usual = {
        name: SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        for number, name in enumerate(names, 1)
    }
    for name, new in usual.items():
        (folder / name).rename(folder / new)
    if count == 1:
        path.unlink()
        return
    index["weight_map"] = {tensor: usual[name] for tensor, name in index["weight_map"].items()}
    path.write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
