"""What an adapter's settings and weights say, held against what PEFT can do with them. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.models.look.tensors import Tensor
from schemas.foreign import shown

LARGEST_RANK = 1 << 16

UNMERGED = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "POLY", "XLORA"),
)
"""Kinds that are no change of weights, such as tokens of their own before each text."""

UNMERGED_SETTINGS = ("alora_invocation_tokens", "layer_replication")
"""Settings with which an adapter is more than a change of its base's weights."""

NAMES = ("base_model_name_or_path", "revision")
"""Settings that are a text or null."""


def adapter_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong in the settings of an adapter."""
    for name in NAMES:
        value = settings.get(name)
        if value is not None and not isinstance(value, str):
            yield f"{name} is {shown(value)}, expected a text or null"
    if settings.get("auto_mapping") is not None and not isinstance(settings["auto_mapping"], dict):
        yield f"auto_mapping is {shown(settings['auto_mapping'])}, expected an object or null"
    yield from _kind_faults(settings)
    if settings.get("peft_type") != "LORA":
        return
    if not _is_rank(settings.get("r")):
        yield f"r is {shown(settings.get('r'))}, expected a rank from 1 to {LARGEST_RANK}"
    alpha = settings.get("lora_alpha")
    if alpha is not None and (not isinstance(alpha, int | float) or not abs(alpha) < float("inf")):
        yield f"lora_alpha is {shown(alpha)}, expected a number"
    targets = settings.get("target_modules")
    if targets is not None and not _are_names(targets):
        yield f"target_modules is {shown(targets)}, expected names of layers"
    yield from _pattern_faults(settings)


def adapter_tensor_faults(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with an adapter's tensors, its base not looked at."""
    if not tensors:
        yield "holds no tensors: it is not a whole adapter"
        return
    patterns = settings.get("rank_pattern") or settings.get("use_dora")
    rank = settings.get("r")
    for name, tensor in tensors.items() if settings.get("peft_type") == "LORA" else ():
        if name.endswith(".lora_A.weight") and not patterns and tensor.shape[:1] != (rank,):
            yield (
                f"has tensor {shown(name)} of shape {shown(list(tensor.shape))}, but r is "
                f"{shown(rank)}: settings and weights are of different adapters"
            )
            return


def _kind_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield why an adapter is of no kind that can be worked into its base's weights."""
    if settings.get("peft_type") in UNMERGED:
        yield (
            f"peft_type is {shown(settings['peft_type'])}, which changes no weights of the base "
            "and cannot be merged into it: give an adapter of another kind, such as LORA"
        )
    for name in UNMERGED_SETTINGS:
        if settings.get(name):
            yield f"{name} is {shown(settings[name])}, and such an adapter cannot be merged"


def _pattern_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    ranks = settings.get("rank_pattern")
    if ranks and not (isinstance(ranks, Mapping) and all(map(_is_rank, ranks.values()))):
        yield f"rank_pattern is {shown(ranks)}, expected layers and their ranks"


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_RANK


def _are_names(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) and n for n in value)
