"""What of a model its memory depends on, from its `config.json` and the names of its layers.

Promises: no weight is read.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.models.loading import empty_model
from pipeline.models.source import ModelSource, load_settings

EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k")
"""Names of how many experts of a layer a token goes to."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    parameters: int
    layers: int
    hidden: int
    """Width of a token's state between layers."""
    inner: int
    """Width inside a layer's feed-forward part, over all experts that a token goes to."""
    attention: int
    """Width of queries, keys and values together."""
    cached: int
    """Numbers of keys and values that all layers keep of a token; 0 for a state space model."""
    vocabulary: int
    linear: int = 0
    """Inputs and outputs of all linear layers but the head: of each an adapter has its rank."""


def shape_of(source: ModelSource) -> Shape:
    """Return the sizes of a model.

    Raises:
        ConfigError: its configuration cannot be read, or transformers cannot make it.
    """
    from torch import nn

    model: Any = empty_model(source)
    settings, head = load_settings(source), model.get_output_embeddings()
    linear = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
    queries, keys = attention_widths(settings)
    return Shape(
        parameters=sum(one.numel() for one in model.parameters()),
        layers=int(settings.num_hidden_layers),
        hidden=int(settings.hidden_size),
        inner=_inner(settings),
        attention=queries + 2 * keys,
        cached=cached_numbers(settings),
        vocabulary=int(settings.vocab_size),
        linear=sum(one.in_features + one.out_features for one in linear),
    )


def attention_widths(settings: Any) -> tuple[int, int]:
    """Return the widths of queries, and of keys or of values, of a transformers configuration."""
    queries = getattr(settings, "num_attention_heads", None) or 1  # none: a state space model
    heads = getattr(settings, "num_key_value_heads", None) or queries
    width = getattr(settings, "head_dim", None) or settings.hidden_size // queries
    return queries * width, heads * width


def cached_numbers(settings: Any) -> int:
    """Return how many numbers of keys and values all layers keep of a token."""
    return 2 * int(settings.num_hidden_layers) * attention_widths(settings)[1]


def _inner(settings: Any) -> int:
    plain = getattr(settings, "intermediate_size", None) or 4 * settings.hidden_size
    one = getattr(settings, "moe_intermediate_size", None) or plain
    count = next((n for name in EXPERTS if (n := getattr(settings, name, None))), 1)
    return max(int(plain), int(one) * int(count))
