"""Targets: normalised, on exactly the support, from data that are possible."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.losses import token_losses
from pipeline.objectives.targets import build_targets
from schemas.errors import DataError
from tests.support.lossreference import (
    FORWARD,
    NEG_INF,
    OFF_POLICY,
    REVERSE,
    build,
    case,
    loss_and_gradient,
    random_logits,
    raw_columns,
    rng,
)


def test_the_sampled_token_takes_its_mass_out_of_the_tail() -> None:
    _, teacher_TV, targets = case(FORWARD, k=4)
    log_p_TV = teacher_TV.log_softmax(-1)
    inside_TV = torch.zeros(9, 12, dtype=torch.bool).scatter(-1, targets.ids_TS, True)
    expected_T = log_p_TV.masked_fill(inside_TV, NEG_INF).logsumexp(-1)
    torch.testing.assert_close(targets.tail_T.double(), expected_T, rtol=1e-6, atol=1e-6)
    assert not bool(targets.tail_clamped_T.any())


@settings(max_examples=100, deadline=None)
@given(
    vocab=st.integers(1, 40),
    share=st.floats(0, 1),
    sharp=st.sampled_from([0.0, 1.0, 5.0, 20.0]),
    seed=st.integers(0, 10**6),
)
def test_targets_are_normalised_after_float16_and_their_ids_are_exactly_the_support(
    vocab: int, share: float, sharp: float, seed: int
) -> None:
    teacher_TV = random_logits(5, vocab, sharp=sharp, seed=seed)
    tokens_T = torch.randint(0, vocab, (5,), generator=rng(seed))
    columns = raw_columns(teacher_TV, tokens_T, max(1, round(share * vocab)))
    targets = build(columns, topk_logprobs_TK=columns["topk_logprobs_TK"].half())
    log_p_TC = torch.cat([targets.logprobs_TS, targets.tail_T[:, None]], dim=-1).double()
    torch.testing.assert_close(log_p_TC.exp().sum(-1), torch.ones(5).double(), rtol=0, atol=1e-6)
    assert not bool(log_p_TC.isnan().any())
    for t in range(5):
        ids = targets.ids_TS[t][targets.valid_TS[t]].tolist()
        assert len(ids) == len(set(ids))
        assert set(ids) == {*targets.ids_TS[t].tolist(), int(tokens_T[t])}
        assert len(ids) < vocab or targets.tail_T[t] == NEG_INF


def test_a_token_that_rounding_made_larger_than_the_tail_is_clamped_and_counted() -> None:
    log_p = [math.log(0.9), math.log(0.06), math.log(0.04)]
    targets = build_targets(
        torch.tensor([[0]]),
        torch.tensor([[log_p[0]]]),
        tail_T=torch.tensor([math.log(0.1)]),
        token_ids_T=torch.tensor([1]),
        token_logprob_T=torch.tensor([math.log(0.101)]),
        weight_T=torch.ones(1),
        vocab_size=3,
    )
    assert bool(targets.tail_clamped_T.all())
    assert math.isfinite(float(targets.tail_T))
    loss_T, grad_TV = loss_and_gradient(torch.zeros(1, 3), targets, REVERSE)
    assert bool(loss_T.isfinite().all()) and bool(grad_TV.isfinite().all())
    assert float(token_losses(torch.zeros(1, 3), targets, REVERSE)[1]["tail_clamped"]) == 1.0


def bad_columns(columns: dict[str, Any]) -> dict[str, tuple[str, Tensor, str]]:
    """One impossible column each: which, its value, what the message says."""
    ids_TK, logprobs_TK = columns["topk_ids_TK"], columns["topk_logprobs_TK"]
    nan_T = torch.full((9,), math.nan)
    return {
        "duplicate": ("topk_ids_TK", ids_TK[:, [0, 1, 0, 3]], "duplicate"),
        "id = V": ("topk_ids_TK", ids_TK.masked_fill(ids_TK == 5, 12), "outside the vocabulary"),
        "id < 0": ("topk_ids_TK", ids_TK.masked_fill(ids_TK == 5, -1), "outside the vocabulary"),
        "token = V": ("token_ids_T", torch.full((9,), 12), "sampled id outside"),
        "token < 0": ("token_ids_T", torch.full((9,), -1), "sampled id outside"),
        "NaN": ("topk_logprobs_TK", logprobs_TK * math.nan, "top-k log-probability is NaN"),
        "positive": ("topk_logprobs_TK", -logprobs_TK, "top-k log-probability is NaN or positive"),
        "NaN token": ("token_logprob_T", nan_T, "sampled-token log-probability is NaN"),
        "NaN tail": ("tail_T", nan_T, "tail log-probability is NaN"),
        "NaN rollout": ("rollout_logprob_T", nan_T, "rollout log-probability is NaN"),
        "probability as tail": ("tail_T", columns["tail_T"].exp() * 0, "mass is not 1"),
        "half the mass": ("topk_logprobs_TK", logprobs_TK - 0.7, "mass is not 1"),
        "negative weight": ("weight_T", -torch.ones(9), "weight is negative"),
        "NaN weight": ("weight_T", nan_T, "not finite"),
        "one short": ("weight_T", torch.ones(8), "shapes disagree"),
        "flat": ("topk_logprobs_TK", logprobs_TK[:, 0], "shapes disagree"),
    }


BAD = bad_columns(raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4))


@pytest.mark.parametrize("name", BAD)
def test_impossible_teacher_data_are_refused(name: str) -> None:
    columns = raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4)
    column, value, message = BAD[name]
    build(columns)
    with pytest.raises(DataError, match=message):
        build(columns, **{column: value})


def test_the_message_names_the_first_bad_position_and_the_count() -> None:
    columns = raw_columns(random_logits(9, 12, seed=2), torch.arange(9), 4)
    columns["token_logprob_T"][[3, 7]] = math.nan
    with pytest.raises(DataError, match="at 2 of 9 positions, the first is 3"):
        build(columns)


def test_slices_and_moves_take_every_column_along() -> None:
    _, _, targets = case(OFF_POLICY, k=4)
    part = targets[2:5].to("cpu")
    assert len(part) == 3
    assert torch.equal(part.ids_TS, targets.ids_TS[2:5])
    assert part.rollout_logprob_T is not None and len(part.rollout_logprob_T) == 3
    chosen = targets[torch.tensor([8, 0])]
    assert torch.equal(chosen.token_ids_T, targets.token_ids_T[[8, 0]])
