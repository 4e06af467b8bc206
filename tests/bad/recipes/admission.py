"""Models and runs that the gate before a run, or before a state is saved, must meet."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def half_weights(folder: Path) -> None:
    """Leave the teacher half of its tensors."""
    path = folder / "main" / "model.safetensors"
    weights = load_file(path)
    kept = sorted(weights)[: len(weights) // 2]
    save_file({name: weights[name] for name in kept}, path, metadata={"format": "pt"})


def untrained(folder: Path) -> None:
    """Take the training of both rounds back."""
    run = folder / "store" / "runs" / "tiny"
    for place in ("rounds/0000/train", "rounds/0001", "checkpoints/0001", "checkpoints/0002"):
        shutil.rmtree(run / place)
