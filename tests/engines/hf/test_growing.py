"""The cache that has room for tokens to come, against transformers' own."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig
from transformers.cache_utils import DynamicLayer

from pipeline.engines.hf.growing import GrowingLayer, growing_cache

LENGTHS = (5, *[1] * 60)
"""Tokens of a prompt and of steps: the room is made larger twice on the way."""


def states(tokens: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, tokens, 8, generator=random)


def told(cache: Any) -> list[Tensor]:
    """Return all that a cache answers while it grows and loses rows."""
    answers, rows = [], torch.arange(4)
    for step, tokens in enumerate(LENGTHS):
        given = [states(tokens, 2 * step + one)[rows] for one in (0, 1)]
        answers += [part.clone() for part in cache.update(*given, 0)]
        assert cache.get_seq_length(0) == sum(LENGTHS[: step + 1])
        if step in (3, 40):
            keep = torch.arange(len(rows))[:-1]
            cache.reorder_cache(keep)
            rows = rows[keep]
    return answers


@torch.inference_mode()
def test_a_growing_cache_answers_as_transformers_own() -> None:
    config = LlamaConfig(num_hidden_layers=1)
    ours, theirs = growing_cache(config), DynamicCache(config=config)
    assert isinstance(ours.layers[0], GrowingLayer)
    for mine, other in zip(told(ours), told(theirs), strict=True):
        assert torch.equal(mine, other)


@torch.inference_mode()
def test_a_step_within_the_room_copies_nothing_that_is_held() -> None:
    cache = growing_cache(LlamaConfig(num_hidden_layers=1))
    keys, _ = cache.update(states(5, 0), states(5, 1), 0)
    longer, _ = cache.update(states(1, 2), states(1, 3), 0)
    assert longer.data_ptr() == keys.data_ptr()


def test_only_layers_of_plain_attention_grow_so() -> None:
    kinds_of = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=4, layer_types=kinds_of)
    kinds = [type(layer) for layer in growing_cache(config).layers]
    assert kinds[1] is GrowingLayer and kinds[0] is not DynamicLayer
    assert not issubclass(kinds[0], GrowingLayer)
