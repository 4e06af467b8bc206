"""Scores made from stored ones against scores that the teacher's full logits give directly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scores.buckets import bucket_of
from pipeline.scores.reduction import check_derivable, derive
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals
from schemas.errors import ConfigError
from schemas.scoresignal import Signal

VOCAB, TOKENS = 40, 9


def scored(seed: int, signal: Signal) -> Scores:
    """Return the scores of random logits, some of which are impossible."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(TOKENS, VOCAB, generator=random)
    logits[0, 5:] = -torch.inf
    token = torch.randint(0, 5, (TOKENS,), generator=random)
    candidates = torch.randint(0, VOCAB, (TOKENS, 3), generator=random)
    uniforms = torch.rand(TOKENS, 4, generator=random, dtype=torch.float64)
    found = score_signals(
        logits,
        token,
        signal=signal,
        vocab_size=VOCAB,
        candidates_TN=candidates if signal.candidates else None,
        uniforms_TD=uniforms if signal.draws else None,
    )
    return Scores.of({name: value.numpy() for name, value in found.items()})


@st.composite
def signals(draw: st.DrawFn) -> tuple[Signal, Signal]:
    """Return a signal and a smaller one."""
    k = draw(st.integers(1, VOCAB))
    smaller_k = draw(st.integers(1, k))
    top_p, min_k = draw(st.none() | st.floats(0.1, 0.999)), draw(st.integers(1, smaller_k))
    buckets, draws = draw(st.sampled_from([1, 5])), draw(st.sampled_from([0, 4]))
    candidates = draw(st.sampled_from([0, 3]))
    source_p = draw(st.none() | st.floats(top_p, 0.9999)) if top_p else None
    source = Signal(k, source_p, min_k if source_p else 1, buckets, candidates, draws)
    target = Signal(
        smaller_k,
        top_p,
        min_k if top_p else 1,
        draw(st.sampled_from([1, buckets])),
        draw(st.sampled_from([0, candidates])),
        draw(st.sampled_from([0, draws])),
    )
    return source, target


@given(signals(), st.integers(0, 2**31))
def test_derived_scores_are_those_of_a_direct_pass(pair: tuple[Signal, Signal], seed: int) -> None:
    source, target = pair
    check_derivable(source, target)
    derived, direct = derive(scored(seed, source), target), scored(seed, target)
    assert derived.arrays().keys() == direct.arrays().keys()
    for name, expected in direct.arrays().items():
        found = derived.arrays()[name]
        if name == "topk_ids":  # which of the impossible ids are kept means nothing
            possible = np.isfinite(direct.topk_logprobs)
            assert np.array_equal(found[possible], expected[possible])
        elif name.endswith(("ids", "rank")):
            assert np.array_equal(found, expected), name
        else:
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            assert np.allclose(np.exp(found), np.exp(expected), atol=2e-6), name


def test_nothing_moves_where_nothing_changes() -> None:
    scores = scored(0, Signal(8, tail_buckets=5))
    for name, value in derive(scores, Signal(8, tail_buckets=5)).arrays().items():
        assert np.array_equal(value, scores.arrays()[name]), name


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (Signal(4), Signal(5), "k = 5"),
        (Signal(4), Signal(4, draws=1), "draws = 1"),
        (Signal(4, candidates=3), Signal(4, candidates=2), "candidates = 2"),
        (Signal(4, tail_buckets=8), Signal(4, tail_buckets=4), "tail_buckets = 4"),
        (Signal(4, entropy=False), Signal(4), "no entropy cannot give"),
        (Signal(4, tail="derived"), Signal(4), "a tail that is derived"),
        (Signal(4, top_p=0.9), Signal(4), "top_p = 1.0"),
        (Signal(4, top_p=0.9), Signal(4, top_p=0.95), "top_p = 0.95"),
        (Signal(4, top_p=0.9), Signal(4, top_p=0.9, min_k=2), "min_k = 2"),
    ],
)
def test_what_was_not_kept_cannot_be_made(source: Signal, target: Signal, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_derivable(source, target)


def test_buckets_are_those_of_the_teachers_pass() -> None:
    ids = torch.arange(0, 2**24, 9973, dtype=torch.int64)
    assert bucket_of(ids.numpy(), 64).tolist() == bucket_of(ids, 64).tolist()
