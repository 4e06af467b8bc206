"""Hugging Face folders of checkpoints: weight files named by content, tied heads written out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints.claim import INDEX
from pipeline.store.disk.files import file_sha256
from schemas.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


MAX_FILE = "4GB"


def export_folder(
    model: "PreTrainedModel", tokenizer: Any, state: "dict[str, Tensor]", folder: Path
) -> None:
    """Write a Hugging Face folder whose weight files are named after their content.

    Args:
        model: gives architecture and settings; its own weights are not used.
        tokenizer: saved beside the weights.
        state: full state, on any device; a tied head may be missing.
        folder: an empty folder.

    Raises:
        DataError: a tensor is empty, as partitioned parameters are when they were not gathered.
    """
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise DataError(f"export of {len(empty)} empty tensors, such as {empty[0]}: not gathered")
    model.save_pretrained(folder, state_dict=state, max_shard_size=MAX_FILE)
    tokenizer.save_pretrained(folder)
    _write_tied_head(model, state, folder)
    _name_by_content(folder)


def _write_tied_head(model: "PreTrainedModel", state: "dict[str, Tensor]", folder: Path) -> None:
    """Add `lm_head.weight` to the weight file of the embedding it is tied to.

    Engines that reload such files in place keep the old head otherwise (vllm#51665).
    """
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    from safetensors.torch import load_file, save_file

    embedding = model.get_input_embeddings()
    modules = {id(module): name for name, module in model.named_modules()}
    source = f"{modules[id(embedding)]}.weight"
    head = f"{modules[id(model.get_output_embeddings())]}.weight"  # type: ignore[no-untyped-call] # transformers' gap
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if source in tensors and head not in tensors:
            tensors[head] = tensors[source].clone()
            save_file(tensors, path, metadata={"format": "pt"})


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
