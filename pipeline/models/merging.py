"""Adapters of any kind that PEFT knows, worked into the weights of their base.

Promises: every tensor of the adapter was read, and the merged model gives the log-probabilities of
PEFT's own unmerged one on a few tokens; a model that cannot be held so is refused.
"""

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.adapters import adapter_weights
from pipeline.models.border import explained
from pipeline.models.lora import read_adapter
from pipeline.scores.tolerances import merge_limit
from schemas.errors import ConfigError
from schemas.foreign import shown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PROBE_TOKENS = 32

ADVICE = (
    "Merge it with PEFT where you can compare the result, and give that folder as the model, or "
    "give an adapter of another kind"
)


def merge_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Return a model, in evaluation mode, with an adapter of any kind worked into its weights.

    A layer whose weight another layer shares, as a tied head does, gets one of its own, and the
    model's settings say so.

    Raises:
        ConfigError: it does not fit the model, or the merged model computes something else.
    """
    import torch

    adapter_weights(folder)
    what = f"the adapter {folder} does not fit its base {model.name_or_path}"
    with explained(what), torch.no_grad():
        adapted = _attached(model, folder)
        expected = _logprobs(adapted)
    what = f"the adapter {folder} cannot be merged into its base"
    with explained(what, advice=ADVICE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties, which are settled and compared here
        _give_own_weights(adapted.get_base_model())
        merged: PreTrainedModel = adapted.merge_and_unload()
        _settle_ties(merged)
    with torch.no_grad():
        _compare(folder, expected, _logprobs(merged), dtype=str(merged.dtype).split(".")[-1])
    return merged


def _attached(model: "PreTrainedModel", folder: Path) -> Any:
    """Return a model that PEFT has put the adapter into, unmerged, every tensor of it read."""
    from peft import PeftModel, set_peft_model_state_dict

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        report: Any = set_peft_model_state_dict(adapted, read_adapter(folder))
    lost = [str(w.message) for w in told if "missing adapter keys" in str(w.message)]
    if lost:
        raise ValueError(lost[0].splitlines()[0])
    if report.unexpected_keys:
        first = sorted(report.unexpected_keys)[0]
        raise ValueError(
            f"{len(report.unexpected_keys)} of its tensors have no place in the model, such as "
            f"{shown(first)}: its settings name other layers than its weights"
        )
    return adapted


def _give_own_weights(model: "PreTrainedModel") -> None:
    """Give each adapted layer whose weight is another layer's, too, a copy of its own.

    Rows that are trained alone are left: PEFT ties their changes as the weights are tied.
    """
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    everywhere = model.named_parameters(remove_duplicate=False)
    owners = Counter(id(parameter) for _, parameter in everywhere)
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, TrainableTokensLayer):
            continue
        layer = module.get_base_layer()
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if owners[id(parameter)] > 1:
                owners[id(parameter)] -= 1
                copy = parameter.detach().clone()
                setattr(layer, name, torch.nn.Parameter(copy, requires_grad=False))


def _settle_ties(model: Any) -> None:
    """Let a model's settings say that its head is its own, where it has become so."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embedding.weight:
        return
    for settings in (model.config, model.config.get_text_config()):
        settings.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _logprobs(model: Any) -> "Tensor":
    """Return log-probabilities of all ids after each of a few tokens from the whole vocabulary."""
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, PROBE_TOKENS, device=model.device).long()[None]
    mask = torch.ones_like(ids)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _compare(folder: Path, expected_TV: "Tensor", found_TV: "Tensor", *, dtype: str) -> None:
    apart_TV = (found_TV - expected_TV).abs()
    exact = dtype == "float32"
    mean = (expected_TV.exp() * apart_TV).sum(-1).mean()  # as the tokens are that would be drawn
    found, allowed = float(apart_TV.max() if exact else mean), merge_limit(exact=exact)
    if not found <= allowed:
        raise ConfigError(
            f"the adapter {folder}, merged into its base in {dtype}, gives log-probabilities "
            f"{found:.3g} nats away from those of PEFT unmerged, at most {allowed:.3g} is "
            f"expected. {ADVICE}"
        )
