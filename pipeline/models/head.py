"""A model's head: what turns its last hidden state into logits. Shapes: T tokens, H hidden."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.border import explained
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SETTINGS = "A setting of its config.json is wrong, or this release of transformers has a fault"

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What Gemma, RecurrentGemma and xLSTM call the cap of their logits."""

MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""What Cohere, Falcon-H1 and Muse call the multiplier of their logits."""

MULTIPLIES = ("hyperclovax",)
"""Kinds of models that multiply with `logits_scaling`; Granite divides by it."""


@dataclass(frozen=True, eq=False)
class Head:
    """What turns the last hidden state into logits: matrix, bias, multiplier, soft cap."""

    weight_VH: Tensor
    """Matrix of the head, often shared with the input embedding."""
    bias_V: Tensor | None = None
    """Bias, or None."""
    softcap: float | None = None
    """Logits z become softcap·tanh(z/softcap); None leaves them."""
    scale: float = 1.0
    """Multiplier of the logits, before the soft cap."""

    def to(self, dtype: torch.dtype) -> "Head":
        """Return the same head with matrix and bias in `dtype`."""
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return replace(self, weight_VH=self.weight_VH.to(dtype), bias_V=bias_V)

    def project(self, hidden_TH: Tensor) -> Tensor:
        """Return the product with the matrix and the bias, in the type of the hidden states."""
        return F.linear(hidden_TH, self.weight_VH, self.bias_V)

    def finish(self, product_TV: Tensor) -> Tensor:
        """Return float32 logits from a product: multiplier, then soft cap."""
        logits_TV = product_TV.float()
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        if self.softcap is not None:
            logits_TV = self.softcap * torch.tanh(logits_TV / self.softcap)
        return logits_TV

    def finish_(self, product_TV: Tensor) -> Tensor:
        """Return what `finish` does, in the place of a float32 product."""
        if self.scale != 1.0:
            product_TV.mul_(self.scale)
        if self.softcap is not None:
            product_TV.div_(self.softcap).tanh_().mul_(self.softcap)
        return product_TV

    def slope_of_cap(self, logits_TV: Tensor) -> Tensor | None:
        """Return the derivative of the soft cap where it gave these logits; None without a cap."""
        return None if self.softcap is None else 1.0 - (logits_TV / self.softcap).square_()

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Return the float32 logits of hidden states of any leading shape."""
        return self.finish(self.project(hidden_TH))


def rows_in(megabytes: float, vocab_size: int) -> int:
    """Return how many rows of float32 logits take that much memory; one at least."""
    return max(1, int(megabytes * 2**20 / (4 * vocab_size)))


def head_of(model: "PreTrainedModel") -> Head:
    """Return the head of a Hugging Face causal language model; the tensors are the model's own.

    Raises:
        ConfigError: the model has no plain linear head (such as one wrapped by an adapter).
    """
    linear = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers' gap
    if not isinstance(linear, torch.nn.Linear):
        raise ConfigError(
            f"{type(model).__name__}: the output embedding is {type(linear).__name__}, expected a "
            "plain Linear; train adapters on other layers, or choose a causal language model"
        )
    config = model.config.get_text_config()
    return Head(
        weight_VH=linear.weight,
        bias_V=linear.bias,
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
        scale=_scale(config),
    )


def _scale(config: Any) -> float:
    """Return the multiplier of the logits; `check_head` finds one that is not known here."""
    multiplier = next((m for name in MULTIPLIERS if (m := getattr(config, name, None))), 1.0)
    scaling = getattr(config, "logits_scaling", None) or 1.0
    return float(multiplier * scaling if config.model_type in MULTIPLIES else multiplier / scaling)


def decoder_of(model: "PreTrainedModel") -> Any:
    """Return what gives a causal language model's last hidden state."""
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call] # transformers' gap
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers' gap
    # Llama 4 has another name for its text model than `model`, and ModernBERT calls its head so
    return getattr(model, "model", model) if decoder in (model, head) else decoder


@torch.no_grad()
def check_head(model: "PreTrainedModel", head: Head, input_ids: Tensor) -> None:
    """Raise unless `head` on the decoder's last hidden state gives the model's own logits.

    Args:
        model: a causal language model; its training mode is restored.
        head: what `head_of` returned for it.
        input_ids: int64 probe, sequences by tokens, a few tokens are enough.

    Raises:
        ConfigError: the logits differ, so the model does more after its head than is known here.
    """
    training = model.training
    model.train(False)
    try:
        with explained(f"{type(model).__name__} cannot compute logits", advice=SETTINGS):
            hidden = decoder_of(model)(input_ids=input_ids, use_cache=False).last_hidden_state
            expected = model(input_ids=input_ids, use_cache=False).logits.float()
            mine = head.logits(hidden)
    finally:
        model.train(training)
    if not bool(torch.isfinite(expected).all()):
        raise ConfigError(
            f"{type(model).__name__}: its logits of the first ids are NaN or infinite, though its "
            "weights are finite: a setting of its config.json is wrong, or the number format is "
            "too narrow for it: try dtype = 'float32'"
        )
    difference = float((mine - expected).abs().max())
    allowed = max(1e-4, 4 * torch.finfo(hidden.dtype).eps) * float(expected.abs().max())
    if not difference <= allowed:
        raise ConfigError(
            f"{type(model).__name__}: logits differ by {difference:.3g} from those of the head, at "
            f"most {allowed:.3g} is expected: the model changes its logits in a way that "
            "`pipeline.models.head.head_of` does not know; teach it, or choose another student"
        )
