"""A model's folder is looked at before it is loaded: every fault of its files, in words.

Promises: nothing is loaded, run or written; the look takes milliseconds and bounded memory, and a
folder that has not changed since is not looked at again.
"""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.models.look import tensors as weights_of
from pipeline.models.look.adapterfiles import adapter_faults, adapter_tensor_faults
from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.layers import layer_faults
from pipeline.models.look.quantisation import told_elsewhere
from pipeline.models.look.settings import (
    CONFIG,
    GENERATION,
    config_faults,
    id_faults,
    quantization_of,
    size_of,
)
from pipeline.models.look.tensors import FLOATS, INDEX, Tensor
from pipeline.models.look.vocabulary import template_faults, tokenizer_faults
from schemas.foreign import shown

MAX_FILES = 2_000
"""Files of a folder that are listed."""

SHOWN_FAULTS = 12

ADAPTER_SETTINGS, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"


def model_faults(folder: Path, *, weights: bool = True, learns: bool = False) -> list[str]:
    """Return what is wrong with a folder of a whole model, a line for each thing.

    Args:
        folder: a folder that exists.
        weights: whether the weights lie there, too.
        learns: whether the model is to be trained, and its chat template is used.
    """
    return _unchanged(folder, partial(_model_faults, weights=weights, learns=learns))


def adapter_folder_faults(
    folder: Path, base: Path | None, *, weights: bool = True, learns: bool = False
) -> list[str]:
    """Return what is wrong with a folder of an adapter, its base left out.

    Args:
        folder: a folder that exists.
        base: folder of the model that it belongs to; None where that is not on this machine.
        weights: whether the weights lie there, too.
        learns: whether the adapter is to be trained, and its chat template is used.
    """
    size = None if base is None else _vocab_size(base)
    return _unchanged(
        folder, partial(_adapter_faults, vocab_size=size, weights=weights, learns=learns)
    )


def in_words(folder: Path, faults: list[str]) -> str:
    """Return faults as the end of a message."""
    if len(faults) == 1:
        return f"in {folder}, {faults[0]}"
    lines = [f"\n  {fault}" for fault in faults[:SHOWN_FAULTS]]
    more = len(faults) - SHOWN_FAULTS
    return f"{len(faults)} things are wrong in {folder}:{''.join(lines)}" + (
        f"\n  and {more} more" if more > 0 else ""
    )


def _unchanged(folder: Path, look: "partial[Iterator[str]]") -> list[str]:
    """Return what a look finds, or what it found when the folder was as it is now."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry, _ in zip(entries, range(MAX_FILES + 1), strict=False)]
    except OSError as error:
        return [f"the folder cannot be listed: {error.strerror or error}"]
    if len(found) > MAX_FILES:
        return [f"there are more than {MAX_FILES} files: it is no folder of one model"]
    options = (look.func, tuple(sorted(look.keywords.items())))
    return list(_looked(folder, tuple(sorted(map(_state, found))), options))


@lru_cache(maxsize=64)
def _looked(folder: Path, state: object, options: Any) -> tuple[str, ...]:
    look, keywords = options
    return tuple(look(folder, **dict(keywords)))


def _state(entry: "os.DirEntry[str]") -> tuple[str, int, int, int]:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere
        return (entry.name, 0, 0, 0)
    return (entry.name, found.st_size, found.st_mtime_ns, found.st_ino)


def _model_faults(folder: Path, *, weights: bool, learns: bool) -> Iterator[str]:
    settings = None
    try:
        settings = read_object(folder / CONFIG)
    except Unusable as error:
        yield f"{CONFIG} {error}"
    if settings is not None:
        yield from (f"{CONFIG}: {words}" for words in config_faults(settings))
        quantized = quantization_of(settings)
        if learns and quantized is not None and quantized.get("dequantize") is not True:
            yield (
                f"{CONFIG}: quantization_config is {shown(quantized)}, and weights that were "
                "quantised cannot be trained: give the model that was not quantised"
            )
        yield from told_elsewhere(folder, settings)
    size = None if settings is None else size_of(settings, "vocab_size")
    yield from _generation_faults(folder, size)
    yield from tokenizer_faults(folder, size)
    if learns:
        yield from template_faults(folder)
    if weights:
        yield from _weight_faults(folder, settings)


def _generation_faults(folder: Path, vocab_size: int | None) -> Iterator[str]:
    if not os.path.lexists(folder / GENERATION):
        return
    try:
        generation = read_object(folder / GENERATION)
        yield from (f"{GENERATION}: {words}" for words in id_faults(generation, vocab_size))
    except Unusable as error:
        yield f"{GENERATION} {error}"


def _weight_faults(folder: Path, settings: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with the files of weights, and where they do not fit the settings."""
    try:
        names = weights_of.weight_files(folder)
    except Unusable as error:
        yield f"{INDEX} {error}" if os.path.lexists(folder / INDEX) else str(error)
        return
    found: dict[str, dict[str, Tensor]] = {}
    for name in sorted({*names, *(path.name for path in folder.glob("*.safetensors"))}):
        try:
            found[name] = weights_of.read_header(folder / name)
        except Unusable as error:
            yield f"{name} {error}"
    if weights_of.SINGLE not in names and len(found) >= len(names):
        yield from weights_of.index_faults(weights_of.read_index(folder), found)
    together = {n: t for name in names for n, t in found.get(name, {}).items()}
    if settings is None or any(config_faults(settings)):
        return  # what is wrong alone is not held against other things
    if all(name in found for name in names):
        yield from weights_of.double_faults(names, found)
        yield from _format_faults(together, settings)
        yield from layer_faults(together, settings)


def _format_faults(found: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Iterator[str]:
    if quantization_of(settings) is not None:
        return
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS and len(tensor.shape) == 2 and name.endswith(".weight"):
            yield (
                f"tensor {shown(name)} holds numbers of format {tensor.dtype}, expected floating "
                "point, for config.json has no quantization_config"
            )
            return


def _vocab_size(folder: Path) -> int | None:
    try:
        return size_of(read_object(folder / CONFIG), "vocab_size")
    except Unusable:
        return None


def _adapter_faults(
    folder: Path, *, vocab_size: int | None, weights: bool, learns: bool
) -> Iterator[str]:
    settings: Mapping[str, Any] = {}
    try:
        settings = read_object(folder / ADAPTER_SETTINGS)
        yield from (f"{ADAPTER_SETTINGS}: {words}" for words in adapter_faults(settings))
    except Unusable as error:
        yield f"{ADAPTER_SETTINGS} {error}"
    yield from tokenizer_faults(folder, vocab_size)
    if learns:
        yield from template_faults(folder)
    if not weights:
        return
    try:
        found = weights_of.read_header(folder / ADAPTER_TENSORS)
        yield from (f"{ADAPTER_TENSORS} {w}" for w in adapter_tensor_faults(found, settings))
    except Unusable as error:
        yield f"{ADAPTER_TENSORS} {error}"
