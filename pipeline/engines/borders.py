"""Lengths at which a model begins to do something else, as its settings name them. Pure."""

from collections.abc import Iterator
from typing import Any

BORDERS = (
    *("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"),
    *("original_max_position_embeddings", "index_topk"),
)
"""Settings that name such a length."""


def borders_of(settings: Any) -> list[int]:
    """Return the lengths that the settings of a text model name, and those of its rotary scaling.

    Each once, in tokens, the shortest first.
    """
    return sorted(set(_named(settings)))


def _named(settings: Any) -> Iterator[int]:
    scaling = getattr(settings, "rope_parameters", None) or {}
    for name in BORDERS:
        for value in (getattr(settings, name, None), scaling.get(name)):
            if isinstance(value, int) and not isinstance(value, bool):
                yield value
