"""Names of tensors held against a model's parameters: nothing of the files is left unread.

Promises: what may be left is known to change no number; a model is judged from the headers of its
files, or from the report of its loading. Torch and transformers are imported inside functions only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.border import explained, settle_libraries, without_warnings
from pipeline.models.look.jsonfiles import Unusable, read_object
from pipeline.models.look.settings import CONFIG, quantization_of, size_of
from pipeline.models.look.tensors import FLOATS, Tensor, read_header, weight_files
from pipeline.models.source import (
    ModelSource,
    advice_of,
    load_settings,
    local_folder,
    whole_settings,
)
from schemas.foreign import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPUTED = re.compile(r"(?:^|\.)inv_freq$")
"""Names of buffers that every release of transformers computes anew."""

MASK = re.compile(r"\.(?:attn|attention|self_attention)\.(?:attention\.)?(?:bias|masked_bias)$")
"""Names under which old releases kept what hides later tokens: a triangle, or one number."""

LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")

QUANTIZED = re.compile(r"scale|zero|qweight|g_idx|packed|absmax|quant|amax|_blocks")

SHOWN_NAMES = 3


@dataclass(frozen=True)
class _Files:
    """What the headers of a model's files say."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Path]
    """Tensor → file."""

    def values(self, name: str) -> Any:
        """Return a tensor, read from its file."""
        from safetensors import safe_open

        with safe_open(self.places[name], framework="pt") as file:
            return file.get_tensor(name)


def require_read(source: ModelSource) -> None:
    """Make sure that a model's class reads every tensor of its files, before any is loaded.

    A class that comes as code beside the model is left to the loading. Of a quantised model, whose
    numbers an engine reads in its own way, only biases must have a place.

    Raises:
        ConfigError: it does not, or a parameter is in no file.
    """
    source = source.whole
    found = _files(source)
    made = None if found is None else _made_of_headers(source, found)
    if found is None or made is None:
        return
    model, report = made
    if quantization_of(found.settings) is None:
        refuse_unread(source, model, report)
        return
    biases = {name for name in report["unexpected_keys"] if name.endswith(".bias")}
    _refuse(source, model, _unread(found, biases, model))


def refuse_unread(source: ModelSource, model: "PreTrainedModel", report: Mapping[str, Any]) -> None:
    """Refuse a model unless every tensor of its files was read and every parameter was in them.

    Args:
        source: where the files are.
        model: what was made of them.
        report: what transformers says of its loading.

    Raises:
        ConfigError: it is not so.
    """
    for kind in ("missing_keys", "mismatched_keys"):
        told = report.get(kind) or ()
        lacking = sorted(str(name[0] if isinstance(name, tuple) else name) for name in told)
        if lacking:
            raise source.blame(
                f"the weights of {source.location} do not fit its config.json: {len(lacking)} "
                f"{kind.replace('_', ' ')}, such as {lacking[0]}; the model is damaged"
            )
    if told := list(report.get("error_msgs") or ()):
        raise source.blame(f"the weights of {source.location} cannot be read: {shown(told[0])}")
    found = _files(source)
    if found is None:
        return
    unread = set(map(str, report.get("unexpected_keys") or ()))
    _refuse(source, model, _unread(found, unread, model))
    if quantization_of(found.settings) is None:
        _refuse_whole_numbers(source, model, found)


def _refuse(source: ModelSource, model: "PreTrainedModel", names: list[str]) -> None:
    if not names:
        return
    named = ", ".join(map(shown, names[:SHOWN_NAMES]))
    if any(QUANTIZED.search(name) for name in names):
        advice = (
            "They belong to a quantisation: give the model that was not quantised, or an engine "
            "that knows the method, with the quantization_config that its maker wrote"
        )
    else:
        advice = (
            "Correct the setting of config.json that denies them, such as attention_bias or the "
            "number of layers, or copy settings and weights of one model again"
        )
    raise source.blame(
        f"the weights of {source.location} do not fit its config.json: {len(names)} tensors of the "
        f"files have no place in {type(model).__name__}, such as {named}; without them the model "
        f"gives other numbers. {advice}"
    )


def _unread(found: _Files, names: set[str], model: "PreTrainedModel") -> list[str]:
    """Return, of tensors that were not read, those not known to be harmless, and second copies."""
    prefix = f"{model.base_model_prefix}."
    left = [name for name in names if not _is_harmless(found, name, prefix)]
    twins = [n for n in found.tensors if n.startswith(prefix) and n[len(prefix) :] in found.tensors]
    left += [name for name in twins if not _are_equal(found, name, name[len(prefix) :])]
    return sorted({*left})


def _is_harmless(found: _Files, name: str, prefix: str) -> bool:
    own = next((n for n in _spellings(name, prefix) if n in found.tensors), None)
    if COMPUTED.search(name) or _is_spare_layer(found.settings, name):
        return True
    if own is None:
        return False
    if MASK.search(own):
        shape = found.tensors[own].shape
        return not shape or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])
    return own.endswith(".bias") and not bool(found.values(own).any())


def _spellings(name: str, prefix: str) -> tuple[str, str, str]:
    """Return a name as it is, without and with the prefix that transformers adds or removes."""
    return name, name.removeprefix(prefix), f"{prefix}{name}"


def _is_spare_layer(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether a layer of the settings' own foretells further tokens and nothing else."""
    match = LAYER.search(name)
    layers, spare = size_of(settings, "num_hidden_layers"), size_of(settings, SPARE_LAYERS)
    return bool(match and layers and spare and layers <= int(match[1]) < layers + spare)


SPARE_LAYERS = "num_nextn_predict_layers"
"""Setting of models with layers that only foretell further tokens."""


def _are_equal(found: _Files, one: str, other: str) -> bool:
    import torch

    return found.tensors[one] == found.tensors[other] and bool(
        torch.equal(found.values(one), found.values(other))
    )


def _refuse_whole_numbers(source: ModelSource, model: "PreTrainedModel", found: _Files) -> None:
    """Refuse parameters made of whole numbers: without a quantisation these are codes."""
    prefix = f"{model.base_model_prefix}."
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in found.tensors.items():
        if tensor.dtype not in FLOATS and not parameters.isdisjoint(_spellings(name, prefix)):
            raise source.blame(
                f"the weights of {source.location} do not fit its config.json: tensor "
                f"{shown(name)} holds numbers of format {tensor.dtype}, expected floating point, "
                "for config.json has no quantization_config"
            )


def _files(source: ModelSource) -> _Files | None:
    """Return what is known of a model's files; None where they are not on this machine."""
    folder = local_folder(source)
    if folder is None:
        return None
    tensors: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    try:
        settings = read_object(folder / CONFIG)
        for file in weight_files(folder):
            header = read_header(folder / file)
            tensors |= header
            places |= dict.fromkeys(header, folder / file)
    except Unusable as error:
        if not source.is_folder:  # the hub may still have to send them
            return None
        raise source.blame(f"cannot load {source.words}: {error}") from error
    return _Files(settings, tensors, places)


def _made_of_headers(
    source: ModelSource, found: _Files
) -> tuple["PreTrainedModel", dict[str, Any]] | None:
    """Return a model without values, loaded by transformers from names and shapes, and its report.

    None where the class is not one of transformers' own.
    """
    import torch

    settle_libraries()
    kind, settings = _class_of(source)
    if kind is None:
        return None
    tensors = {n: torch.empty(t.shape, device="meta") for n, t in found.tensors.items()}
    what = f"cannot load {source.words}"
    with explained(what, blame=source.blame, advice=advice_of(source)), without_warnings():
        model, report = kind.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, report


def _class_of(source: ModelSource) -> tuple[Any, Any]:
    """Return the class that transformers loads a model with, or None, and its settings."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    load_settings(source)  # first, for names would be blamed for odd settings
    settings = whole_settings(source)
    own = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    if (source.trust_remote_code and own) or type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None, settings
    for part in (settings, settings.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    several: Iterable[Any] = classes if isinstance(classes, list | tuple) else (classes,)
    named = settings.architectures or ()
    known = [one for one in several if one.__name__ in named]
    return (known or list(several))[0], settings
