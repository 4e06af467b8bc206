"""The hf engine on a GPU against float64 numbers from full forwards of one row on the CPU."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.scoresignal import Signal
from tests.support.golden import (
    KINDS,
    PLAIN,
    Models,
    V,
    assert_same_scores,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("arch", "tied"), KINDS)
def test_scores_equal_a_full_forward_of_each_row_on_the_cpu(
    make: Models, arch: str, tied: bool
) -> None:
    model, (prompts, responses) = make(arch, tied), rows(9)
    engine = model.engine(batch_tokens=40, chunk_tokens=3, device="cuda")
    found = engine.score(prompts, responses, signal=Signal(4), vocab_size=V)
    expected = reference_scores(model, prompts, responses, k=4, vocab_size=V)
    assert_same_scores(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "signal",
    [Signal(4, candidates=3), Signal(4, draws=5), Signal(4, sample=5), Signal(0, sample=5)],
    ids=repr,
)
def test_candidates_draws_and_samples_are_those_of_the_cpu(make: Models, signal: Signal) -> None:
    model, (prompts, responses) = make(), rows(5)
    candidates = None
    if signal.candidates:
        random = np.random.default_rng(0)
        candidates = [
            np.stack([random.permutation(V)[: signal.candidates] for _ in response]).astype(
                np.int32
            )
            for response in responses
        ]
    both = [
        model.engine(device=device).score(
            prompts, responses, signal=signal, vocab_size=V, candidates=candidates
        )
        for device in ("cuda", "cpu")
    ]
    found, expected = (scores.arrays() for scores in both)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("arch", "tied"), KINDS)
def test_a_row_draws_the_same_tokens_alone_and_in_any_batch(
    make: Models, arch: str, tied: bool
) -> None:
    model, prompts = make(arch, tied), rows(9)[0]
    sides = [
        generate(model.engine(batch_tokens=size, device=device), prompts, PLAIN, range(9))
        for size, device in [(1, "cuda"), (100_000, "cuda"), (100_000, "cpu")]
    ]
    for alone, together, reference in zip(*sides, strict=True):
        for found in (together, reference):
            np.testing.assert_array_equal(found.ids, alone.ids)
            np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=1e-4)


def test_sampled_logprobs_are_those_of_the_cut_distribution(make: Models) -> None:
    model, prompts = make(), rows(6)[0]
    sampling = replace(PLAIN, temperature=0.7, top_p=0.9, top_k=12)
    samples = generate(model.engine(device="cuda"), prompts, sampling, range(6))
    for prompt, sample in zip(prompts, samples, strict=True):
        expected = reference_logprobs(model.logits(prompt, sample.ids), sampling)
        np.testing.assert_allclose(
            sample.logprobs, np.take_along_axis(expected, sample.ids[:, None], 1)[:, 0], atol=1e-3
        )


def test_bfloat16_scores_are_near_those_of_float32(make: Models) -> None:
    model, (prompts, responses) = make(), rows(9)
    low, full = (
        model.engine(device="cuda", dtype=dtype).score(
            prompts, responses, signal=Signal(V), vocab_size=V
        )
        for dtype in ("bfloat16", "float32")
    )
    apart = np.abs(low.token_logprob - full.token_logprob)
    assert 0 < apart.max() < 0.1
