"""Stored signals against their definitions in Python floats."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scores.inclusion import inclusions, log_thresholds, sampled_mass
from pipeline.scores.scores import Scores
from pipeline.scores.signals import log_normalisers, score_signals, signal_uniforms
from schemas.scoresignal import Signal

ROW = st.integers(2, 9).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(-300, 300), min_size=size, max_size=size, unique=True),
        min_size=1,
        max_size=4,
    )
)


def log_sum(values: list[float]) -> float:
    if not values or max(values) == -math.inf:
        return -math.inf
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))


def assert_signals(
    logits: list[list[float]], tokens: list[int], *, k: int, vocab_size: int
) -> None:
    found = score_signals(
        torch.tensor(logits), torch.tensor(tokens), signal=Signal(k), vocab_size=vocab_size
    )
    found_rows = {name: value.tolist() for name, value in found.items()}
    for row, (values, token) in enumerate(zip(logits, tokens, strict=True)):
        logprobs = [x - log_sum(values) for x in values]
        top = sorted(range(vocab_size), key=lambda i: -logprobs[i])[:k]  # noqa: B023
        rest = [x for i, x in enumerate(logprobs) if i not in top]
        expected: dict[str, Any] = {
            "topk_ids": top,
            "topk_logprobs": [logprobs[i] for i in top],
            "tail_logprobs": log_sum(rest),
            "token_logprob": logprobs[token],
            "token_rank": 1 + sum(x > logprobs[token] for x in logprobs),
            "entropy": -sum(math.exp(x) * x for x in logprobs if x > -math.inf),
        }
        assert set(found_rows) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                found_rows[name][row], value, rtol=2e-6, atol=2e-5, err_msg=name
            )


@given(ROW, st.data())
def test_signals_equal_their_definitions(rows: list[list[int]], data: st.DataObject) -> None:
    size = len(rows[0])
    vocab_size = data.draw(st.integers(1, size))
    k = data.draw(st.integers(1, vocab_size))
    tokens = [data.draw(st.integers(0, size - 1)) for _ in rows]
    assert_signals([[x / 20 for x in row] for row in rows], tokens, k=k, vocab_size=vocab_size)


@given(ROW)
def test_a_whole_vocabulary_leaves_an_empty_tail(rows: list[list[int]]) -> None:
    size = len(rows[0])
    found = score_signals(
        torch.tensor(rows) / 20,
        torch.zeros(len(rows), dtype=torch.int64),
        signal=Signal(size),
        vocab_size=size,
    )
    assert torch.isneginf(found["tail_logprobs"]).all()
    torch.testing.assert_close(found["topk_logprobs"].exp().sum(-1), torch.ones(len(rows)))


def test_ids_that_the_model_rules_out_leave_every_number_a_number() -> None:
    logits = [[1.0, -math.inf, 0.5, -math.inf], [-math.inf, 2.0, -math.inf, 1.0]]
    assert_signals(logits, [2, 1], k=2, vocab_size=4)


def test_a_tiny_tail_keeps_its_size() -> None:
    logits_TV = torch.tensor([[20.0, 19.0, 0.0, -1.0]])
    tail = score_signals(logits_TV, torch.tensor([0]), signal=Signal(2), vocab_size=4)[
        "tail_logprobs"
    ]
    expected = (logits_TV.double().log_softmax(-1)[:, 2:]).logsumexp(-1)
    torch.testing.assert_close(tail.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 50.0, 1e4])
def test_entropy_is_never_negative_nor_above_that_of_the_uniform_distribution(
    scale: float,
) -> None:
    logits_TV = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * scale
    entropy = score_signals(
        logits_TV, torch.zeros(50, dtype=torch.int64), signal=Signal(1), vocab_size=33
    )
    assert (entropy["entropy"] >= 0).all()
    assert (entropy["entropy"] <= math.log(33) + 1e-5).all()


def test_equal_logits_share_the_better_rank() -> None:
    logits_TV = torch.tensor([[1.0, 2.0, 2.0, 0.0]]).repeat(4, 1)
    found = score_signals(logits_TV, torch.arange(4), signal=Signal(1), vocab_size=4)
    assert found["token_rank"].tolist() == [3, 1, 1, 4]


def test_types_are_those_that_are_stored() -> None:
    found = score_signals(
        torch.zeros(2, 5).bfloat16(), torch.tensor([0, 1]), signal=Signal(3), vocab_size=5
    )
    whole = {name for name, value in found.items() if value.dtype == torch.int32}
    assert whole == {"topk_ids", "token_rank"}
    assert {v.dtype for n, v in found.items() if n not in whole} == {torch.float32}
    assert {name: tuple(value.shape) for name, value in found.items() if value.dim() == 2} == {
        "topk_ids": (2, 3),
        "topk_logprobs": (2, 3),
    }


def test_the_top_k_ends_where_the_mass_is_reached() -> None:
    logits_TV = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01]]).log()
    signal = Signal(3, top_p=0.75)
    found = score_signals(logits_TV, torch.tensor([0, 0]), signal=signal, vocab_size=4)
    assert found["topk_ids"].tolist() == [[0, 1, -1], [0, -1, -1]]
    torch.testing.assert_close(found["tail_logprobs"].exp(), torch.tensor([0.2, 0.03]))
    least = Signal(3, top_p=0.75, min_k=2)
    found = score_signals(logits_TV, torch.tensor([0, 0]), signal=least, vocab_size=4)
    assert (found["topk_ids"] >= 0).sum(-1).tolist() == [2, 2]


def test_buckets_split_the_tail_by_the_hash() -> None:
    logits_TV = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    whole = score_signals(logits_TV, torch.zeros(5).long(), signal=Signal(4), vocab_size=300)
    signal = Signal(4, tail_buckets=7)
    parts = score_signals(logits_TV, torch.zeros(5).long(), signal=signal, vocab_size=300)[
        "tail_logprobs"
    ]
    torch.testing.assert_close(parts.logsumexp(-1), whole["tail_logprobs"])
    buckets = [((i * 2654435761) % 2**32) * 7 >> 32 for i in range(300)]
    probs_TV = logits_TV.softmax(-1).scatter(-1, whole["topk_ids"].long(), 0.0)
    for bucket in range(7):
        mine = torch.tensor([b == bucket for b in buckets])
        torch.testing.assert_close(parts[:, bucket].exp(), probs_TV[:, mine].sum(-1))


def test_draws_follow_the_distribution_and_candidates_are_looked_up() -> None:
    probs_TV = torch.tensor([[0.6, 0.0, 0.4]])
    uniforms_TD = (torch.arange(100, dtype=torch.float64)[None] + 0.5) / 100
    found = score_signals(
        probs_TV.log(),
        torch.tensor([0]),
        signal=Signal(1, candidates=2, draws=100),
        vocab_size=3,
        candidates_TN=torch.tensor([[2, 1]]),
        uniforms_TD=uniforms_TD.flip(-1),
    )
    assert found["draw_ids"].tolist() == [[0] * 60 + [2] * 40]
    assert found["candidate_ids"].tolist() == [[2, 1]]
    assert found["candidate_logprobs"].exp().tolist()[0] == pytest.approx([0.4, 0.0])


def sampled(logits_TV: torch.Tensor, signal: Signal, vocab_size: int) -> Scores:
    tokens = len(logits_TV)
    numbers_TD = signal_uniforms("d", tokens, signal)
    assert numbers_TD is not None
    found = score_signals(
        logits_TV.clone(),
        torch.zeros(tokens, dtype=torch.int64),
        signal=signal,
        vocab_size=vocab_size,
        uniforms_TD=torch.from_numpy(numbers_TD),
    )
    return Scores.of({name: value.numpy() for name, value in found.items()})


@pytest.mark.parametrize(
    "signal",
    [
        Signal(0, sample=6),
        Signal(4, sample=6, draws=3),
        Signal(5, top_p=0.6, min_k=2, sample=6, tail_buckets=3),
    ],
)
def test_a_sample_is_of_what_lies_outside_the_top_k(signal: Signal) -> None:
    logits_TV = torch.randn(40, 60, generator=torch.Generator().manual_seed(1)) * 2
    scores = sampled(logits_TV, signal, 50)
    assert scores.sample_ids is not None and scores.sample_logprobs is not None
    assert scores.sample_ids.max() < 50 and scores.sample_ids.min() >= 0
    for top, own in zip(scores.topk_ids, scores.sample_ids, strict=True):
        assert len({*top[top >= 0].tolist(), *own.tolist()}) == (top >= 0).sum() + 6
    logprobs_TV = logits_TV.double().log_softmax(-1).numpy()
    expected = np.take_along_axis(logprobs_TV, scores.sample_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(scores.sample_logprobs, expected, atol=1e-5)
    inside = np.exp(logprobs_TV[:, :50]).sum(1)  # the ids from 50 on are the teacher's alone
    inside -= np.where(scores.topk_ids >= 0, np.exp(scores.topk_logprobs), 0).sum(1)
    found = log_thresholds(scores.sample_logprobs, np.log(inside))
    np.testing.assert_allclose(np.asarray(scores.sample_threshold), found, atol=1e-4)


def test_the_threshold_of_a_sample_follows_from_what_is_stored() -> None:
    logits_TV = torch.randn(40, 60, generator=torch.Generator().manual_seed(1)) * 2
    for signal in (Signal(0, sample=9), Signal(4, sample=9)):
        scores = sampled(logits_TV, signal, 60)
        assert scores.sample_logprobs is not None
        mass_T = sampled_mass(scores)
        found = log_thresholds(scores.sample_logprobs, mass_T)
        np.testing.assert_allclose(found, np.asarray(scores.sample_threshold), atol=1e-4)
        parts = np.exp(scores.sample_logprobs) / inclusions(scores.sample_logprobs, mass_T)
        np.testing.assert_allclose(parts.sum(1), np.exp(mass_T), rtol=1e-6)


def test_a_sample_has_no_more_ids_than_have_mass() -> None:
    logits_TV = torch.tensor([[1.0, -math.inf, 0.5, -math.inf], [2.0, -math.inf, -math.inf, -1.0]])
    scores = sampled(logits_TV, Signal(1, sample=3), 4)
    assert scores.sample_ids is not None and scores.sample_logprobs is not None
    assert scores.sample_ids.tolist() == [[2, -1, -1], [3, -1, -1]]
    assert np.isneginf(scores.sample_logprobs[:, 1:]).all()
    assert np.isneginf(np.asarray(scores.sample_threshold)).all()


@given(st.integers(0, 999), st.integers(1, 30), st.sampled_from([0.05, 0.5, 0.9, 1.3, 2.0, 50.0]))
def test_the_log_normaliser_is_that_of_the_whole_vocabulary(
    seed: int, vocab: int, temperature: float
) -> None:
    random = np.random.default_rng(seed)
    logits_TV = np.round(random.normal(0, 4, (3, vocab)), 1)  # with ties
    logits_TV[random.random(logits_TV.shape) < 0.2] = -np.inf
    logits_TV[:, 0] = 1.0
    given_TV = torch.from_numpy(logits_TV)
    shifted_TV = given_TV - given_TV.amax(-1, keepdim=True)
    log_sum_T1 = shifted_TV.exp().sum(-1, keepdim=True).log()
    found = log_normalisers(shifted_TV, log_sum_T1, (temperature, 1.0))
    for row, values in enumerate(logits_TV.tolist()):
        logprobs = [x - log_sum(values) for x in values]
        expected = log_sum([x / temperature for x in logprobs])
        np.testing.assert_allclose(found[row], [expected, 0.0], rtol=1e-12, atol=1e-12)
    stored = score_signals(
        given_TV.float(),
        torch.zeros(3, dtype=torch.int64),
        signal=Signal(1, temperatures=(temperature, 1.0)),
        vocab_size=vocab,
    )["log_normalisers"]
    torch.testing.assert_close(stored.double(), found, rtol=1e-6, atol=1e-5)


def test_random_numbers_of_draws_and_sample_do_not_depend_on_each_other() -> None:
    both, draws, sample = (
        signal_uniforms("d", 5, signal)
        for signal in (Signal(1, draws=2, sample=3), Signal(1, draws=2), Signal(1, sample=7))
    )
    assert both is not None and draws is not None and sample is not None
    np.testing.assert_array_equal(both, np.concatenate([draws, sample], axis=1))
    assert signal_uniforms("d", 5, Signal(1)) is None
