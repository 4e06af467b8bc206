"""Weights that are quantised, and settings that do not say so."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def whole_numbers(folder: Path) -> None:
    """Store a matrix of the teacher as whole numbers, with a scale."""
    _store(folder / "main", torch.int8, largest=127.0)


def modelopt(folder: Path) -> None:
    """Store the teacher as ModelOpt does, which names the quantisation in a file of its own."""
    _store(folder / "main", torch.float8_e4m3fn, largest=448.0)
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "main" / "hf_quant_config.json").write_text(json.dumps(told))


def _store(model: Path, dtype: torch.dtype, *, largest: float) -> None:
    stored = dict[str, torch.Tensor]()
    for name, weight in load_file(model / WEIGHTS).items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.abs().max() / largest
            stored[name], stored[f"{name}_scale"] = (weight / scale).to(dtype), scale
    save_file(stored, model / WEIGHTS, metadata={"format": "pt"})
