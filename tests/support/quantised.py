"""Tiny quantised checkpoints, made by hand, beside the same weights dequantised."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4 = torch.cat([FP4, -FP4])
"""Values of FP4, by their codes."""

GROUP = BLOCK = 32
"""Columns that share a scale in four bits, and rows and columns that share one in FP8."""


def fp8_by_channel(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in FP8 with a scale for each row, and what it stands for."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {name: stored, f"{name}_scale": scale}, stored.float() * scale


def fp8_by_block(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in FP8 with a scale for each block, as DeepSeek's are; and what it is."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    stored = (blocks / scale).to(torch.float8_e4m3fn)
    value = (stored.float() * scale).reshape(weight.shape)
    inverse = scale[:, 0, :, 0].contiguous()
    return {name: stored.reshape(weight.shape), f"{name}_scale_inv": inverse}, value


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


BLOCKS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def _four_bit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes from 0 to 15, scales of groups in 16 bits, and what they stand for."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(2) / 7).half()
    whole = (groups / scale.float()[..., None]).round().clamp(-8, 7)
    value = (whole * scale.float()[..., None]).reshape(weight.shape)
    return (whole + 8).reshape(weight.shape).long(), scale, value


def _words(codes: Tensor) -> Tensor:
    """Return rows of codes, eight to a word."""
    words = (codes.reshape(len(codes), -1, 8) << (torch.arange(8) * 4)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def mxfp8(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in FP8 with a power of two for each group of columns; and what it is."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    power = (groups.abs().amax(2) / 448).log2().ceil()
    stored = (groups / 2 ** power[..., None]).to(torch.float8_e4m3fn)
    value = (stored.float() * 2 ** power[..., None]).reshape(weight.shape)
    scales = {f"{name}_scale_inv": (power + 127).to(torch.uint8)}
    return {name: stored.reshape(weight.shape), **scales}, value


def mxfp4(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return experts' matrices in FP4, two values to a byte, as GPT-OSS has; and what they are."""
    turned = weight.transpose(1, 2)
    groups = turned.reshape(*turned.shape[:2], -1, GROUP)
    power = (groups.abs().amax(3) / 6).log2().ceil()
    codes = ((groups / 2 ** power[..., None])[..., None] - FP4).abs().argmin(-1)
    value = (FP4[codes] * 2 ** power[..., None]).reshape(turned.shape).transpose(1, 2)
    blocks = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": (power + 127).to(torch.uint8)}
    return stored, value.contiguous()


def gptq(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in four bits as GPTQ stores them, with scales of groups; and what it is."""
    whole, scale, value = _four_bit_groups(weight)
    layer, columns = name.removesuffix(".weight"), weight.shape[1]
    zeros = torch.full((columns // GROUP, weight.shape[0]), 7)
    stored = {
        f"{layer}.qweight": _words(whole).T.contiguous(),
        f"{layer}.qzeros": _words(zeros),
        f"{layer}.scales": scale.T.contiguous(),
        f"{layer}.g_idx": (torch.arange(columns) // GROUP).to(torch.int32),
    }
    return stored, value


def awq(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """Return a matrix in four bits as AWQ stores them, with scales of groups; and what it is."""
    whole, scale, value = _four_bit_groups(weight)
    layer = name.removesuffix(".weight")
    zeros = torch.full((weight.shape[1] // GROUP, weight.shape[0]), 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    mixed = [x.reshape(len(x), -1, 8)[:, :, order].reshape(x.shape) for x in (whole.T, zeros)]
    return {
        f"{layer}.qweight": _words(mixed[0]),
        f"{layer}.qzeros": _words(mixed[1]),
        f"{layer}.scales": scale.T.contiguous(),
    }, value


KINDS = {
    "fp8-blocks": (fp8_by_block, BLOCKS),
    "mxfp8": (mxfp8, {**BLOCKS, "quant_method": "mxfp8", "weight_block_size": [1, GROUP]}),
    "fp8": (fp8_by_channel, compressed(8, "float", "float-quantized", strategy="channel")),
    "int4": (
        four_bits,
        compressed(4, "int", "pack-quantized", strategy="group", group_size=GROUP),
    ),
}


PACKED = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
}
"""Kinds that only kernels of a package read."""

EXPERTS = {"mxfp4": (mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})}
"""Kinds of mixtures of experts."""


def quantise(model: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """Write a quantised copy of a model, and one of the same weights dequantised.

    Args:
        model: a whole model in float32.
        folder: where both go.
        kind: one of `KINDS`, `PACKED` or `EXPERTS`.

    Returns:
        The folders of both.
    """
    pack, settings = {**KINDS, **PACKED, **EXPERTS}[kind]
    ending = "_proj" if kind in EXPERTS else "proj.weight"
    packed, plain = Tensors(), Tensors()
    for name, weight in load_file(model / "model.safetensors").items():
        stored, value = ({name: weight}, weight)
        if name.endswith(ending):
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
