"""Rotary scaling that follows the longest row of a batch: neighbours change a row's numbers.

Promises: rows of one side of a border have the numbers that they have alone. Must not: load a
model. Pure but for the reading of settings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError

LONGROPE, DYNAMIC = "longrope", "dynamic"

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Border:
    """Up to which length a model has one set of frequencies."""

    kind: str
    """`longrope` has a second set beyond the border; `dynamic` one for each length."""
    tokens: int

    def sides(self, lengths: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether rows are beyond the border; those that are share no batch with others.

        Raises:
            ConfigError: some are, and each of them has frequencies of its own.
        """
        beyond: NDArray[np.bool_] = lengths > self.tokens
        if self.kind == DYNAMIC and beyond.any():
            raise ConfigError(self._words(int(lengths.max())))
        return beyond

    def check(self, longest: int) -> None:
        """Make sure that no row may go beyond the border.

        Raises:
            ConfigError: one may.
        """
        if longest > self.tokens:
            raise ConfigError(self._words(longest))

    def _words(self, longest: int) -> str:
        return (
            f"rotary scaling {self.kind!r} of the model's config.json changes the frequencies of "
            f"whole sequences that grow beyond {self.tokens} tokens: their tokens would get other "
            f"probabilities than those they are drawn with. Sequences may have {longest} tokens: "
            f"lower prompts.max_tokens and max_new_tokens to {self.tokens} together"
        )


def border_of(settings: Any) -> Border | None:
    """Return the border of a model's settings; None where frequencies do not follow the length.

    Args:
        settings: what transformers read from `config.json`.
    """
    text = settings.get_text_config()
    borders = []
    for scaling in _scalings(text):
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind == LONGROPE:
            tokens = scaling.get(ORIGINAL) or getattr(text, ORIGINAL, None)
        elif kind == DYNAMIC:
            tokens = None
        else:
            continue
        # transformers lets dynamic frequencies grow from here on
        tokens = tokens or getattr(text, "max_position_embeddings", None)
        if isinstance(tokens, int):
            borders.append(Border(kind, tokens))
    return min(borders, key=lambda border: border.tokens, default=None)


def _scalings(text: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary settings of a text model: one, or one of each kind of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if isinstance(found, Mapping):
        yield found
        yield from (part for part in found.values() if isinstance(part, Mapping))
