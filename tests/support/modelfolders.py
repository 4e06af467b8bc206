"""Damage and changes to the folder of a model."""

import json
from pathlib import Path
from typing import Any

from pipeline.models.source import ModelSource

WEIGHTS = "model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), None, False)


def drop_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
