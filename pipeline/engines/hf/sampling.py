"""Sampling from logits with one random stream per row, vectorised over rows. Pure.

A row's uniform numbers are a hash of (seed, step), so a row draws the same tokens alone or in any
batch. Shapes: B rows, V vocabulary, N steps.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.scores.threshold import filled, threshold_sample
from schemas.randomness import derived_seed, uniforms


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


def own_sample(logprobs_BV: Tensor, uniforms_B: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Return a threshold sample of the distribution that is drawn from, and its log-probabilities.

    Ids are distinct, int64 [B, N]; where too few have mass, others follow with -inf.

    Args:
        logprobs_BV: of the distribution, as `processed_logprobs` gives it.
        uniforms_B: random numbers of `own_uniforms`.
        places: ids of a position, at most as many as there are.
    """
    weights_BV = logprobs_BV.exp()
    found_BN, _ = threshold_sample(weights_BV, uniforms_B, places)
    ids_BN = filled(found_BN, weights_BV)
    return ids_BN, logprobs_BV.gather(-1, ids_BN).masked_fill(found_BN < 0, -math.inf)


def own_uniforms(seeds: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Return the random numbers [B, N] of rows' own samples, apart from those that draw tokens."""
    return uniforms(np.array([derived_seed("sample", int(seed)) for seed in seeds]), steps)
