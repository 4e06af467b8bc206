"""A sample keeps its threshold on its way through each codec, however sharp the distribution is."""

import numpy as np
import pytest
import torch

from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.inclusion import inclusions, log_thresholds, sampled_mass, whole_again
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals
from pipeline.shards.codec import CODECS
from schemas.scoresignal import Signal
from tests.support.anyscores import through

TOKENS, VOCAB = 200, 3000


def scored(signal: Signal) -> Scores:
    """Return scores of positions from flat to so sharp that one id has nearly all of the mass."""
    random = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(TOKENS, VOCAB, generator=random) * 2
    logits_TV[:, 7] += torch.linspace(0, 25, TOKENS)
    found = score_signals(
        logits_TV,
        torch.zeros(TOKENS, dtype=torch.int64),
        signal=signal,
        vocab_size=VOCAB,
        uniforms_TD=torch.rand(TOKENS, 1, generator=random, dtype=torch.float64),
    )
    return Scores.of({name: value.numpy() for name, value in found.items()})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("signal", [Signal(0, sample=16), Signal(16, sample=16)], ids=str)
def test_a_threshold_comes_through_a_codec(codec: str, signal: Signal) -> None:
    exact = scored(signal)
    table = table_of(["a"], exact, np.array([TOKENS]), signal)
    scores = scores_of(through(codec, table, signal, VOCAB))
    assert scores.sample_logprobs is not None
    mass_T = sampled_mass(scores)
    found = log_thresholds(scores.sample_logprobs, mass_T)
    size = np.abs(np.asarray(exact.sample_threshold))
    bound = (size + 2) / 128 if codec == "packed-v1" else np.full(TOKENS, 2e-3)
    known = np.exp(found - mass_T) > 1e-7  # float32 keeps no smaller share of the mass
    assert known.mean() > 0.6
    assert (np.abs(found - np.asarray(exact.sample_threshold)) <= bound)[known].all()
    parts = np.exp(scores.sample_logprobs) / inclusions(scores.sample_logprobs, mass_T)
    np.testing.assert_allclose(parts.sum(1), np.exp(mass_T), rtol=1e-5)


def test_scores_without_a_sample_stay_as_they_are() -> None:
    plain = scored(Signal(3))
    assert whole_again(plain) is plain


def test_what_is_scaled_keeps_its_order_and_stays_a_log_probability() -> None:
    exact = scored(Signal(0, sample=16))
    for shift in (-0.3, 0.3):
        threshold = np.asarray(exact.sample_threshold) + np.float32(shift)
        arrays = {**exact.arrays(), "sample_threshold": threshold}
        found = whole_again(Scores.of(arrays)).sample_logprobs
        assert found is not None and found.dtype == np.float32
        assert (np.diff(found, axis=1) <= 0).all() and found.max() <= 0
