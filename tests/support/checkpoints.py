"""Checkpoints of tiny models, and whether one is what was exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.opening import opened
from pipeline.checkpoints.publishing import publish_checkpoint
from pipeline.models.adapters import ADAPTER_WEIGHTS
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import load_tokenizer
from pipeline.outcome.folder import write_checkpoint
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.store.storage import Storage
from schemas.keys import commit_key, stage_folder
from schemas.records.training import CheckpointManifest
from tests.support import tiny

PROBE = torch.tensor([[4, 9, 14, 7, 15, 8]])
STATE = commit_key(stage_folder("tiny", 0, "train"), "step-000002")
ORIGIN = {"run": "tiny", "round": 0, "step": 2}


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
    source = ModelSource(str(made), None, False)
    export_folder(model, model.state_dict(), source=source, folder=target)
    return target


def publish(run: Run, folder: Path) -> CheckpointManifest:
    return publish_checkpoint(run, 1, folder, origin=ORIGIN, state=STATE)


def as_exported(checkpoint: Path, folder: Path) -> Path:
    """Return a folder of a checkpoint as `opd export` writes it."""
    run, place = open_run(load_config(tiny.write_run(folder / "run"))), folder / "plain"
    place.mkdir()
    write_checkpoint(run, publish(run, checkpoint), place)
    assert (place / "model.safetensors").is_file()
    return place


def assert_whole(run: Run, manifest: CheckpointManifest, expected: Path) -> None:
    """Check that a checkpoint opens, verified, and is the one that was exported to a folder."""
    with opened(run, manifest) as folder:
        assert {p.name for p in folder.iterdir()} >= {p.name for p in expected.iterdir()}
        assert torch.equal(logits(model_of(folder)), logits(model_of(expected)))
        load_tokenizer(str(folder), revision=None, trust_remote_code=False)


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
