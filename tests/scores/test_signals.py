"""Stored signals against their definitions in Python floats."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scores.signals import score_signals
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
