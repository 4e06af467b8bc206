"""Keys and values of attention layers in memory that has room for tokens to come.

Promises: the numbers of transformers' own cache, which copies all it holds at every token; here a
token is written to its place, and what is held is copied each time it has grown by half.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 8
"""Room that is made at least."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call] # transformers' gap
    """What one layer keeps, at the front of a larger tensor. For inference alone."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call] # transformers' gap
        self._rooms: tuple[Tensor | None, Tensor | None] = (None, None)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the states of new tokens; return those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        whole = held + key_states.shape[-2]
        keys, values = self._rooms
        self._rooms = _written(keys, key_states, held), _written(values, value_states, held)
        return self._shown(whole)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep some rows."""
        held = self.get_seq_length()
        if held:
            keys, values = (None if r is None else r.index_select(0, beam_idx) for r in self._rooms)
            self._rooms = keys, values
            self._shown(held)

    def _shown(self, tokens: int) -> tuple[Tensor, Tensor]:
        keys, values = self._rooms
        assert keys is not None and values is not None
        self.keys, self.values = keys[..., :tokens, :], values[..., :tokens, :]
        return self.keys, self.values


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache of the layers that a model has; those of plain attention grow so."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


def _written(room: Tensor | None, states: Tensor, held: int) -> Tensor:
    """Return memory that holds further states behind those that are held: the same or a larger."""
    whole = held + states.shape[-2]
    if room is None or room.shape[-2] < whole:
        size = (*states.shape[:-2], whole + max(SPARE_TOKENS, whole // 8), states.shape[-1])
        larger = states.new_empty(size)
        if room is not None:
            larger[..., :held, :] = room[..., :held, :]
        room = larger
    room[..., held:whole, :] = states
    return room
