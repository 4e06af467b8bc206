"""Hugging Face folders of checkpoints: weight files named by content, all else as it came.

Promises: a tensor that has several names is written under those that the source has.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints.carried import carry_model_files
from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.settingsfile import write_settings
from pipeline.models.border import explained
from pipeline.models.look.jsonfiles import Unusable
from pipeline.models.look.tensors import read_header, weight_files
from pipeline.models.source import ModelSource, local_folder
from pipeline.store.disk.files import file_sha256
from schemas.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


MAX_FILE = "4GB"


def export_folder(
    model: "PreTrainedModel", state: "Mapping[str, Tensor]", *, source: ModelSource, folder: Path
) -> None:
    """Write a Hugging Face folder whose weight files are named after their content.

    Args:
        model: gives architecture and names; its own weights are not used.
        state: full state, on any device; a tied head may be missing.
        source: what the model was loaded from: gives every file but weights, as it is.
        folder: an empty folder.

    Raises:
        DataError: a tensor is empty, as partitioned parameters are when they were not gathered.
        ConfigError: transformers cannot give the weights the names that they came with.
    """
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise DataError(f"export of {len(empty)} empty tensors, such as {empty[0]}: not gathered")
    formats: Counter[str] = Counter()
    for tensor in state.values():
        formats[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    carry_model_files(source, folder)
    write_settings(model, source, folder, dtype=formats.most_common(1)[0][0])
    with explained(f"the weights of {source.words} cannot be written as they came"):
        _write_weights(_as_it_came(model, state, _names(source)), folder)
    _name_by_content(folder)


def _names(source: ModelSource) -> set[str]:
    """Return the names of a model's tensors in its files; none where these are not here."""
    folder = local_folder(source.whole)
    try:
        files = [] if folder is None else [folder / name for name in weight_files(folder)]
        return {name for path in files for name in read_header(path)}
    except Unusable:
        return set()


def _as_it_came(model: Any, state: "Mapping[str, Tensor]", names: set[str]) -> "dict[str, Tensor]":
    """Return a state by the names of files; a tied tensor has those that the source gave it."""
    from transformers.core_model_loading import revert_weight_conversion

    written, ties = dict(state), set(getattr(model, "all_tied_weights_keys", None) or ())
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for group in groups.values():
        main = next((name for name in group if name not in ties), group[0])
        tensor = next(state[name] for name in group if name in state)
        for name in group if len(group) > 1 else ():
            written.pop(name, None)
            if name == main or _is_among(name, names):
                written[name] = state.get(name, tensor)
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        written.pop(name, None)
    found: dict[str, Tensor] = revert_weight_conversion(model, written)
    return found


def _is_among(name: str, names: set[str]) -> bool:
    """Return whether a tensor is in files whose names may begin otherwise."""
    ends = (f".{other}" for other in names)
    return name in names or any(f".{name}".endswith(e) or e.endswith(f".{name}") for e in ends)


def _write_weights(tensors: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write tensors into files of a size that stores take; what shares memory is written twice."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    given = dict(tensors)
    pattern = "model{suffix}.safetensors"
    parts = split_torch_state_dict_into_shards(
        given, filename_pattern=pattern, max_shard_size=MAX_FILE
    )
    for name, members in parts.filename_to_tensors.items():
        seen: set[int] = set()
        part = {}
        for member in members:
            tensor = given[member].contiguous()
            place = tensor.untyped_storage().data_ptr()
            part[member] = tensor.clone() if place in seen else tensor
            seen.add(place)
        save_file(part, folder / name, metadata={"format": "pt"})


def _name_by_content(folder: Path) -> None:
    """Rename weight files to `model-<digest>.safetensors` and write the index that names them."""
    from safetensors import safe_open

    weight_map, total = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        name = f"model-{file_sha256(path)[:16]}.safetensors"
        with safe_open(path, framework="pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), name))
        total += path.stat().st_size
        path.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
