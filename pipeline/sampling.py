"""Sampling from logits with one random stream per row, vectorised over rows. Pure.

A row's uniform numbers are a hash of (seed, step), so a row draws the same tokens alone or in any
batch. Shapes: B rows, V vocabulary, N steps.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def uniforms(seeds: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    """Return float64 [B, N] numbers in [0, 1): SplitMix64 of each row's seed and the step.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        step = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = seeds.astype(np.uint64)[:, None] + step[None, :]
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def processed_logprobs(
    logits_BV: Tensor, *, temperature: float, top_p: float, top_k: int
) -> Tensor:
    """Return float32 [B, V] log-probabilities of the distribution that is sampled from.

    Temperature first, then top-k, then top-p, each on what the last left; dropped ids are -inf.
    At temperature 0 the model's own distribution is returned.
    """
    logits_BV = logits_BV.float()
    if temperature == 0.0:
        return logits_BV.log_softmax(-1)
    if temperature != 1.0:
        logits_BV = logits_BV / temperature
    if 0 < top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -math.inf)
    if top_p < 1.0:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probs_BV = sorted_BV.softmax(-1)
        dropped_BV = probs_BV.cumsum(-1) - probs_BV >= top_p
        mask_BV = torch.zeros_like(dropped_BV).scatter(-1, order_BV, dropped_BV)
        logits_BV = logits_BV.masked_fill(mask_BV, -math.inf)
    return logits_BV.log_softmax(-1)


def draw(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return int64 [B] ids drawn by inverting the cumulative distribution in float64."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    ids_B = torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]
    return ids_B.clamp(max=logprobs_BV.shape[-1] - 1)
