"""What a student's own sample must be: a threshold sample of what each token was drawn from."""

from typing import Any

import numpy as np
import torch

from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.hf.sampling import own_uniforms
from pipeline.scores.threshold import threshold_sample
from schemas.columns import Ids
from schemas.randomness import derived_seed
from tests.support.golden import Tiny, V, generate, reference_logprobs

CHANGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_k": 4, "candidates": 2},
    {"temperature": 1.7, "top_p": 0.4, "vocab_size": V - 3},
]
"""Ways of sampling; with truncation, fewer ids have mass than are recorded."""

PLACES = 5


def assert_own_samples(
    model: Tiny, engine: Engine, prompts: list[Ids], sampling: Sampling, *, atol: float
) -> None:
    """Make sure that each token's own sample is the one of its distribution and random number."""
    samples = generate(engine, prompts, sampling, range(len(prompts)))
    empty = 0
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        assert sample.sample_ids is not None and sample.sample_logprobs is not None
        assert sample.sample_ids.shape == sample.sample_logprobs.shape == (len(sample.ids), PLACES)
        assert sample.sample_ids.dtype == np.int32 and sample.sample_logprobs.dtype == np.float32
        expected, processed = _expected(model, prompt, sample, sampling, seed=row)
        there = expected >= 0
        empty += int((~there).sum())
        assert (np.isneginf(sample.sample_logprobs) == ~there).all()
        np.testing.assert_array_equal(sample.sample_ids[there], expected[there])
        own = np.take_along_axis(processed, sample.sample_ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(sample.sample_logprobs, own, atol=atol)
        assert all(len(set(ids)) == PLACES for ids in sample.sample_ids.tolist())
    truncated = sampling.top_p < 1 or sampling.top_k > 0
    assert (empty > 0) == truncated, "a weak test"


def _expected(
    model: Tiny, prompt: Ids, sample: Sample, sampling: Sampling, *, seed: int
) -> tuple[Any, Any]:
    """Return the ids of the sample, -1 where no id has mass, and what they were sampled from."""
    limit = sampling.vocab_size or V
    processed = reference_logprobs(model.logits(prompt, sample.ids)[:, :limit], sampling)
    numbers = own_uniforms([derived_seed("row", seed)], len(sample.ids))[0]
    weights_TV = torch.from_numpy(np.exp(processed))
    ids_TN, _ = threshold_sample(weights_TV, torch.from_numpy(numbers), PLACES)
    return ids_TN.numpy(), processed
