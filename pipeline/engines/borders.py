"""Lengths at which a model begins to do something else, as its settings name them. Pure."""

from collections.abc import Iterator
from typing import Any

BORDERS = (
    *("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"),
    *("original_max_position_embeddings", "index_topk"),
)
"""Settings that name such a length."""

LEAST_COMPARED, MOST_COMPARED = 64, 512
"""Tokens of a row that is computed in two ways: at least, where there is room, and at most."""


def borders_of(settings: Any) -> list[int]:
    """Return the lengths that the settings of a text model name, and those of its rotary scaling.

    Each once, in tokens, the shortest first.
    """
    return sorted(set(_named(settings)))


def compared_tokens(settings: Any, longest: int | None) -> int:
    """Return how long a row is that is computed in two ways, beyond a border where one is near.

    Args:
        settings: of a text model.
        longest: tokens of the longest row that is asked for, if that is known.
    """
    held = getattr(settings, "max_position_embeddings", None)
    room = min(n for n in (longest, held, MOST_COMPARED) if n is not None)
    beyond = [border + 8 for border in borders_of(settings) if border + 8 <= room]
    return max(2, min(room, max([LEAST_COMPARED, *beyond])))


def _named(settings: Any) -> Iterator[int]:
    scaling = getattr(settings, "rope_parameters", None) or {}
    for name in BORDERS:
        for value in (getattr(settings, name, None), scaling.get(name)):
            if isinstance(value, int) and not isinstance(value, bool):
                yield value
