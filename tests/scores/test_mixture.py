"""Mixtures of stored scores against mixtures of whole distributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scores.mixture import check_mixable, mix
from pipeline.scores.scores import Scores
from schemas.errors import ConfigError
from schemas.scoresignal import Signal

VOCAB, TOKENS = 23, 8


def teacher(seed: int) -> np.ndarray:
    """Return the probabilities of a random teacher, float64 [tokens, vocabulary]."""
    logits = 2 * np.random.default_rng(seed).normal(size=(TOKENS, VOCAB))
    logits[0, 4:] = -np.inf
    probs = np.exp(logits)
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))


def kept(probs: np.ndarray, k: int, token: np.ndarray) -> Scores:
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(probs, ids, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Scores(
            topk_ids=ids.astype(np.int32),
            topk_logprobs=np.log(top).astype(np.float32),
            tail_logprobs=np.log(np.maximum(1 - top.sum(axis=1), 0)).astype(np.float32),
            token_logprob=np.log(probs[np.arange(TOKENS), token]).astype(np.float32),
            token_rank=np.ones(TOKENS, np.int32),
            entropy=np.zeros(TOKENS, np.float32),
        )


@given(
    st.lists(st.integers(1, VOCAB), min_size=2, max_size=4),
    st.integers(0, 2**31),
    st.integers(1, 9),
)
def test_a_mixture_sums_to_one_and_never_overstates_an_id(
    ks: list[int], seed: int, share: int
) -> None:
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.full(len(ks), float(share))).tolist()
    probs = [teacher(seed + n) for n in range(len(ks))]
    token = random.integers(0, 4, TOKENS)
    k = int(random.integers(1, max(ks) + 1))
    mixed = mix([kept(p, n, token) for p, n in zip(probs, ks, strict=True)], weights, k=k)
    exact = sum(w * p for w, p in zip(weights, probs, strict=True))

    assert all(len(set(row)) == k for row in mixed.topk_ids.tolist())
    top = np.exp(mixed.topk_logprobs.astype(np.float64))
    assert (np.diff(top, axis=1) <= 0).all()
    assert np.allclose(top.sum(axis=1) + np.exp(mixed.tail_logprobs), 1, atol=1e-5)
    assert (top <= np.take_along_axis(exact, mixed.topk_ids, axis=1) + 1e-6).all()
    assert np.allclose(np.exp(mixed.token_logprob), exact[np.arange(TOKENS), token], atol=1e-6)


@given(st.integers(0, 2**31))
def test_a_mixture_of_whole_distributions_is_exact(seed: int) -> None:
    probs, weights = [teacher(seed), teacher(seed + 1)], [0.3, 0.7]
    token = np.random.default_rng(seed).integers(0, 4, TOKENS)
    mixed = mix([kept(p, VOCAB, token) for p in probs], weights, k=VOCAB)
    exact = weights[0] * probs[0] + weights[1] * probs[1]
    found = np.zeros_like(exact)
    np.put_along_axis(found, mixed.topk_ids, np.exp(mixed.topk_logprobs.astype(np.float64)), axis=1)
    assert np.allclose(found, exact, atol=1e-6)
    own = exact[np.arange(TOKENS), token][:, None]
    assert (mixed.token_rank == 1 + (exact > own * (1 + 1e-6)).sum(axis=1)).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(exact > 0, exact * np.log(exact), 0).sum(axis=1)
    assert mixed.entropy is not None
    assert np.allclose(mixed.entropy, entropy, atol=1e-4)


def test_a_mixture_says_that_a_tail_in_it_was_derived() -> None:
    sources = [Signal(3), Signal(2, tail="derived", entropy=False)]
    assert check_mixable(sources, [0.5, 0.5]) == Signal(3, tail="derived")


@pytest.mark.parametrize(
    ("signals", "weights", "words"),
    [
        ([Signal(2), Signal(3)], [1.0], "as many positive weights"),
        ([Signal(2), Signal(3)], [1.5, -0.5], "as many positive weights"),
        ([Signal(2), Signal(3)], [0.5, 0.6], "sum to 1; found 1.1"),
        ([Signal(2), Signal(3, top_p=0.9)], [0.5, 0.5], "top_p cannot be mixed"),
    ],
)
def test_what_cannot_be_mixed_is_said(
    signals: list[Signal], weights: list[float], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_mixable(signals, weights)


def test_a_mixture_keeps_as_many_ids_as_its_largest_source() -> None:
    sources = [Signal(2, draws=3), Signal(5, tail_buckets=4)]
    assert check_mixable(sources, [0.5, 0.5]) == Signal(5)
