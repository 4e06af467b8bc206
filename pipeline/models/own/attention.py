"""Attention whose scores have a soft cap: which models have one, and what computes it.

Transformers' default on torch, `sdpa`, leaves the cap out without a word: Gemma 2 is nats off.
Torch is imported inside functions only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAP = "attn_logit_softcapping"
EAGER = "eager"


def is_capped(settings: Any) -> bool:
    """Return whether a model's settings, or those of its text part, cap scores of attention."""
    return any(getattr(part, CAP, None) for part in (settings, settings.get_text_config()))


def compute_cap(model: "PreTrainedModel") -> None:
    """Have a model's attention computed by what knows its soft cap; leave others as they are."""
    if is_capped(model.config) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(EAGER)
