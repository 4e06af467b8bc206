"""How a student computes while it learns: as it samples, whatever its configuration would drop.

Owns a model's training mode. Promises: without `model_dropout` nothing is left out at random but by
an adapter's own dropout, and what is trained is the function that samples; it is compared, not
assumed. Recomputed activations work in that mode, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pipeline.models.border import explained
from pipeline.models.head import SETTINGS, decoder_of
from schemas.errors import ConfigError

ADAPTER_DROPOUT = "lora_dropout"
"""Name that PEFT gives to the modules of an adapter's dropout."""


@dataclass(frozen=True)
class LearningMode:
    """Which parts of a model are in training mode while it learns."""

    model_dropout: bool
    """All: with the dropout and the router noise of the model's own settings."""
    whole: bool = False
    """All but modules of dropout: for code whose evaluation mode keeps no gradients."""

    def set(self, model: nn.Module, *, learns: bool) -> None:
        """Put a model into the mode in which it learns, or out of it."""
        model.train(learns and (self.model_dropout or self.whole))
        if not learns or self.model_dropout:
            return
        for module in _recomputed(model):
            module.training = True  # of itself alone: transformers asks it, and no child
        for name, module in model.named_modules():
            if ADAPTER_DROPOUT in name.split("."):
                module.training = True
            elif isinstance(module, _DropoutNd):
                module.training = False


def recompute_activations(model: Any, mode: LearningMode) -> None:
    """Have a model compute its activations again in the backward pass, in whatever mode it learns.

    A layer is asked for its mode before it computes; while it computes, it is in evaluation mode.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False})
    if mode.model_dropout or mode.whole:
        return
    for layer in _recomputed(model):
        if isinstance(layer, GradientCheckpointingLayer):
            _Asked(layer)


class _Asked:
    """Has a layer compute in evaluation mode after it was asked for its mode."""

    def __init__(self, layer: nn.Module) -> None:
        self._answer = layer.training
        layer.register_forward_pre_hook(self._before)
        layer.register_forward_hook(self._after, always_call=True)

    def _before(self, layer: nn.Module, _: Any) -> None:
        self._answer, layer.training = layer.training, False

    def _after(self, layer: nn.Module, _: Any, __: Any) -> None:
        layer.training = self._answer


def _recomputed(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose mode decides whether activations are recomputed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    asked = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    layers: list[nn.Module] = [m for m in asked if isinstance(m, GradientCheckpointingLayer)]
    return layers or asked  # code of a model's own asks at the top


def learning_mode(model: Any, input_ids: Tensor, *, model_dropout: bool) -> LearningMode:
    """Return the mode in which a model learns.

    Args:
        model: the model; its mode is changed.
        input_ids: int64 probe, sequences by tokens, a few tokens are enough.
        model_dropout: whether it learns with what its own settings drop.
    """
    mode = LearningMode(model_dropout)
    if model_dropout or not _has_own_code(model):
        return mode
    whole = LearningMode(model_dropout, whole=True)
    if _reached(model, whole, input_ids) <= _reached(model, mode, input_ids):
        return mode
    return whole  # as mixtures of experts whose evaluation runs under no_grad


@torch.no_grad()
def check_quiet(model: Any, mode: LearningMode, input_ids: Tensor) -> None:
    """Make sure that a model computes while it learns what it computes when it samples.

    Args:
        model: the model; it is left in the mode in which it learns.
        mode: in which it learns.
        input_ids: int64 probe, sequences by tokens, a few tokens are enough.

    Raises:
        ConfigError: it does not.
    """
    mode.set(model, learns=False)
    expected = _hidden(model, input_ids)
    adapters = [m for n, m in model.named_modules() if ADAPTER_DROPOUT in n.split(".")]
    mode.set(model, learns=True)
    if mode.model_dropout:
        return
    for module in adapters:
        module.training = False
    difference = float((_hidden(model, input_ids) - expected).abs().max())
    mode.set(model, learns=True)
    allowed = max(1e-4, 4 * torch.finfo(expected.dtype).eps) * float(expected.abs().max())
    if not difference <= allowed:
        raise ConfigError(
            f"{type(model).__name__}: its last hidden state while it learns is {difference:.3g} "
            f"away from what it is when it samples, at most {allowed:.3g} is expected: its code "
            "leaves values out at random, or computes otherwise, in training. Set "
            "train.model_dropout = true to train it as it is, or choose another student"
        )


def _hidden(model: Any, input_ids: Tensor) -> Tensor:
    with explained(f"{type(model).__name__} cannot compute as it would learn", advice=SETTINGS):
        found: Tensor = decoder_of(model)(input_ids=input_ids, use_cache=False).last_hidden_state
    return found


def _has_own_code(model: Any) -> bool:
    return not type(model).__module__.startswith("transformers.models.")


def _reached(model: Any, mode: LearningMode, input_ids: Tensor) -> set[int]:
    """Return which parameters gradients would reach; none is computed."""
    mode.set(model, learns=True)
    with torch.enable_grad():
        return {id(parameter) for parameter in _leaves(_hidden(model, input_ids).grad_fn)}


def _leaves(node: Any) -> Iterator[Any]:
    """Yield the parameters at the end of a graph."""
    seen, left = set(), [node]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        left.extend(below for below, _ in node.next_functions)
