"""`config.json` of a checkpoint: that of the model it comes from, but for what must differ.

Must differ: the number format, the class that was loaded, what loading changed. Keys that no
library knows stay.
"""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.settings import CONFIG
from pipeline.models.source import ModelSource, local_folder, whole_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMATS = ("dtype", "torch_dtype")
"""Keys of the number format: of transformers 5, and of those before."""

OWN = {*FORMATS, "architectures", "_name_or_path", "transformers_version", "auto_map"}
"""Settings that loading sets by itself, and that are not compared."""


def write_settings(
    model: "PreTrainedModel", source: ModelSource, folder: Path, *, dtype: str
) -> None:
    """Write the `config.json` of a checkpoint.

    Args:
        model: what was loaded from the source.
        source: the model that the checkpoint comes from.
        folder: where the checkpoint is being made.
        dtype: number format of the weights that are written.

    Raises:
        ConfigError: the source's cannot be read.
    """
    place = local_folder(source.whole)
    path = None if place is None else place / CONFIG
    try:
        given = {} if path is None else read_object(path)
    except Unusable as error:
        raise source.blame(f"{path} {error}") from error
    settings = _changed(given, model, source)
    _set_format(settings, dtype)
    if settings.get("architectures") != [type(model).__name__]:
        settings["architectures"] = [type(model).__name__]
    if path is not None and settings == given:
        shutil.copyfile(path, folder / CONFIG)
    else:
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _changed(
    given: dict[str, Any], model: "PreTrainedModel", source: ModelSource
) -> dict[str, Any]:
    """Return the source's settings with those that loading has changed."""
    loaded = _plain(model.config)
    if given.get("model_type", loaded.get("model_type")) != loaded.get("model_type") or not given:
        return loaded  # the text part of a model of several
    fresh = _plain(whole_settings(source))
    kept = deepcopy(given)
    for name in {*fresh, *loaded} - OWN:
        if _unformatted(loaded.get(name)) == _unformatted(fresh.get(name)):
            continue
        if loaded.get(name) is None:
            kept.pop(name, None)
        else:
            kept[name] = loaded[name]
    return kept


def _plain(settings: Any) -> dict[str, Any]:
    """Return a transformers configuration as the values that its file would have."""
    found: dict[str, Any] = json.loads(settings.to_json_string(use_diff=False))
    return {name: value for name, value in found.items() if not name.startswith("_attn")}


def _unformatted(value: Any) -> Any:
    """Return a setting without the number formats of a model's parts."""
    if not isinstance(value, dict):
        return value
    return {name: _unformatted(item) for name, item in value.items() if name not in FORMATS}


def _set_format(settings: dict[str, Any], dtype: str) -> None:
    """Set the number format wherever the settings name one of weights."""
    parts = [v for n, v in settings.items() if n.endswith("_config") and isinstance(v, dict)]
    for part in [settings, *(part for part in parts if "quant_method" not in part)]:
        for name in FORMATS:
            if part.get(name) is not None:
                part[name] = dtype
    if not any(settings.get(name) for name in FORMATS):
        settings[FORMATS[0]] = dtype
