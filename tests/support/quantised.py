"""Tiny quantised checkpoints, made by hand, beside the same weights dequantised."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

GROUP = 32
"""Columns that share a scale in four bits."""


def fp8_by_channel(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in FP8 with a scale for each row, and what it stands for."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {name: stored, f"{name}_scale": scale}, stored.float() * scale


def four_bits(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in four bits, eight to a word, with scales of groups; and what it is."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    scale = groups.abs().amax(2, keepdim=True) / 7
    whole = (groups / scale).round().clamp(-8, 7)
    words = (whole.reshape(rows, columns // 8, 8) + 8).to(torch.int32) << (torch.arange(8) * 4)
    stored = {
        f"{name}_packed": words.sum(2).to(torch.int32),
        f"{name}_scale": scale[..., 0],
        f"{name}_shape": torch.tensor([rows, columns]),
    }
    return stored, (whole * scale).reshape(rows, columns)


def compressed(bits: int, kind: str, form: str, **scheme: Any) -> dict[str, Any]:
    """Return the settings of compressed-tensors for weights alone."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **scheme}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


KINDS = {
    "fp8": (fp8_by_channel, compressed(8, "float", "float-quantized", strategy="channel")),
    "int4": (
        four_bits,
        compressed(4, "int", "pack-quantized", strategy="group", group_size=GROUP),
    ),
}


def quantise(model: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """Write a quantised copy of a model, and one of the same weights dequantised.

    Args:
        model: a whole model in float32.
        folder: where both go.
        kind: one of `KINDS`.

    Returns:
        The folders of both.
    """
    pack, settings = KINDS[kind]
    packed, plain = Tensors(), Tensors()
    for name, weight in load_file(model / "model.safetensors").items():
        stored, value = ({name: weight}, weight)
        if name.endswith("proj.weight"):
            stored, value = pack(name, weight)
        packed |= stored
        plain[name] = value
    made = folder / kind, folder / f"{kind}-plain"
    for place, tensors in zip(made, (packed, plain), strict=True):
        shutil.copytree(model, place)
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    file = made[0] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    return made
