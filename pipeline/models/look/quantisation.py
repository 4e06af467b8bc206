"""Files beside config.json that say how a model is quantised, where config.json says nothing.

Engines differ in which of them they read; one that does not takes the raw values for weights.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.look.settings import CONFIG, quantization_of

FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Of ModelOpt, and of older GPTQ and AWQ."""


def told_elsewhere(folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files of a folder that speak of a quantisation of which its settings do not.

    Args:
        folder: a model's folder.
        settings: what its config.json says.
    """
    if quantization_of(settings) is not None:
        return
    for name in FILES:
        if os.path.lexists(folder / name):
            yield (
                f"{name} says that the weights are quantised, but {CONFIG} has no "
                "quantization_config, so that engines would read the raw values: put it there, as "
                "newer releases of the tool that made the model do, or give the model that was "
                f"not quantised. Where these weights are not quantised, delete {name}"
            )
