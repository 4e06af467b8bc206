"""Estimates over a sample against sums over the whole vocabulary, by enumeration in float64."""

import math
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.divergences import DIVERGENCES
from pipeline.objectives.estimators import cut_share, estimated, over_categories
from pipeline.objectives.samples import Sample, threshold_sample, token_sample
from pipeline.objectives.sides import Sides, plain_view
from pipeline.objectives.targets import Targets
from pipeline.scores.buckets import bucket_of
from schemas.config.loss import DivergenceKind, LossConfig
from schemas.scoresignal import SampleOf
from tests.support.lossreference import NEG_INF, random_logits

V = 12
UNCUT = 1e30
LOSSES = [
    LossConfig(kind=kind, beta=0.3, skew=0.2, alpha=0.4, importance_cap=UNCUT)
    for kind in get_args(DivergenceKind)
]
LOSSES += [LossConfig(kind="alpha", alpha=alpha, importance_cap=UNCUT) for alpha in (0.5, 0.7)]
SUITED = [(loss, of) for loss in LOSSES for of in loss.samples]


def name_of(value: object) -> str:
    if not isinstance(value, LossConfig):
        return str(value)
    return value.kind + (f" {value.alpha}" if value.kind == "alpha" else "")


def whole(log_q_V: Tensor, log_p_V: Tensor, loss: LossConfig) -> Tensor:
    """The divergence of all ids, from its definition."""
    p, q = log_p_V.exp(), log_q_V.exp()
    if loss.kind in ("jsd", "gkd"):
        m = (1 - loss.beta) * q + loss.beta * p
        kls = (p * (p / m).log()).sum(), (q * (q / m).log()).sum()
        return loss.beta * kls[0] + (1 - loss.beta) * kls[1]
    return {
        "forward_kl": lambda: (p * (p / q).log()).sum(),
        "reverse_kl": lambda: (q * (q / p).log()).sum(),
        "skew_kl": lambda: (p * (p / (loss.skew * p + (1 - loss.skew) * q)).log()).sum(),
        "skew_reverse_kl": lambda: (q * (q / (loss.skew * q + (1 - loss.skew) * p)).log()).sum(),
        "tvd": lambda: 0.5 * (p - q).abs().sum(),
        "alpha": lambda: (
            (1 - (p**loss.alpha * q ** (1 - loss.alpha)).sum()) / (loss.alpha * (1 - loss.alpha))
        ),
    }[loss.kind]()


def targets_of(log_p_V: Tensor, k: int, buckets: int, sample: Sample | None) -> Targets:
    """Targets of one position in float64, as `build_targets` makes them in float32."""
    ids_K = log_p_V.topk(k).indices
    bucket_V = bucket_of(torch.arange(len(log_p_V)), buckets)
    rest_V = log_p_V.index_fill(0, ids_K, NEG_INF)
    tail_B = [
        rest_V.masked_fill(bucket_V != bucket, NEG_INF).logsumexp(0) for bucket in range(buckets)
    ]
    if sample is not None and k:
        sample = sample.without((sample.ids_TN[:, :, None] == ids_K).any(-1))
    return Targets(
        ids_TS=ids_K[None],
        logprobs_TS=log_p_V[ids_K][None],
        valid_TS=torch.ones(1, k, dtype=torch.bool),
        tail_TB=torch.stack(tail_B)[None],
        token_ids_T=torch.zeros(1, dtype=torch.int64),
        token_logprob_T=log_p_V[:1],
        weight_T=torch.ones(1),
        tail_clamped_T=torch.zeros(1, dtype=torch.bool),
        sample=sample,
    )


def estimate(logits_V: Tensor, targets: Targets, loss: LossConfig) -> tuple[Tensor, Tensor]:
    """Value and gradient of the estimate, float64."""
    logits_TV = logits_V[None].detach().requires_grad_()
    value_T = estimated(
        Sides(plain_view(logits_TV, targets), targets), DIVERGENCES[loss.kind], loss
    )
    return value_T[0].detach(), torch.autograd.grad(value_T.sum(), logits_TV)[0][0]


def drawn_tokens(log_mu_V: Tensor, log_p_V: Tensor) -> Iterator[tuple[float, Sample]]:
    """Every token with its probability."""
    for v in range(len(log_mu_V)):
        sample = token_sample(torch.tensor([v]), log_p_V[v : v + 1], log_mu_V[v : v + 1])
        yield (
            float(log_mu_V[v].exp()),
            Sample(
                of=sample.of,
                ids_TN=sample.ids_TN,
                logprobs_TN=log_p_V[v].view(1, 1),
                log_weights_TN=-log_mu_V[v].view(1, 1),
                rollout_logprobs_TN=log_mu_V[v].view(1, 1),
            ),
        )


def threshold_samples(
    weights_V: Tensor, log_p_V: Tensor, log_mu_V: Tensor | None, places: int
) -> Iterator[tuple[float, Sample]]:
    """Every threshold sample of some weights, with its share of the uniform numbers."""
    chances_V = chances(weights_V, places)
    ends_V = chances_V.cumsum(0)
    breaks = torch.unique(torch.cat([torch.tensor([0.0, 1.0]).double(), ends_V % 1.0]))
    for low, high in zip(breaks[:-1].tolist(), breaks[1:].tolist(), strict=True):
        if high - low < 1e-13:
            continue
        places_N = torch.arange(round(float(ends_V[-1]))) + (low + high) / 2
        ids_N = torch.searchsorted(ends_V, places_N).clamp(max=len(weights_V) - 1)
        yield (
            high - low,
            Sample(
                of="teacher" if log_mu_V is None else "student",
                ids_TN=ids_N[None],
                logprobs_TN=log_p_V[ids_N][None],
                log_weights_TN=-chances_V[ids_N].log()[None],
                rollout_logprobs_TN=None if log_mu_V is None else log_mu_V[ids_N][None],
            ),
        )


def chances(weights_V: Tensor, places: int) -> Tensor:
    """Inclusion probabilities min(1, w/τ) that add up to the number of places."""
    falling = weights_V.sort(descending=True).values
    places = min(places, int((weights_V > 0).sum()))
    for certain in range(places):
        threshold = falling[certain:].sum() / (places - certain)
        if falling[certain] <= threshold:
            break
    return (weights_V / threshold).clamp(max=1.0)


def samples_of(
    of: SampleOf, log_mu_V: Tensor, log_p_V: Tensor, k: int, places: int
) -> list[tuple[float, Sample]]:
    if of == "teacher":
        rest_V = log_p_V.exp().index_fill(0, log_p_V.topk(k).indices, 0.0)
        return list(threshold_samples(rest_V, log_p_V, None, places)) if k < len(log_p_V) else []
    if places == 1:
        return list(drawn_tokens(log_mu_V, log_p_V))
    return list(threshold_samples(log_mu_V.exp(), log_p_V, log_mu_V, places))


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize(("k", "places"), [(0, 1), (0, 5), (4, 1), (4, 3), (11, 2), (3, V)])
@pytest.mark.parametrize(("loss", "of"), SUITED, ids=name_of)
def test_value_and_gradient_are_expected_to_be_those_of_all_ids(
    loss: LossConfig, of: SampleOf, k: int, places: int, buckets: int
) -> None:
    logits_V, mu_V, teacher_V = random_logits(3, V, seed=k + places)
    mu_V = logits_V + 0.3 * mu_V  # sampled by an older student
    log_p_V, log_mu_V = teacher_V.log_softmax(0), mu_V.log_softmax(0)
    value, gradient_V = torch.zeros(()).double(), torch.zeros(V).double()
    for share, sample in samples_of(of, log_mu_V, log_p_V, k, places):
        found, found_V = estimate(logits_V, targets_of(log_p_V, k, buckets, sample), loss)
        value += share * found
        gradient_V += share * found_V
    leaf_V = logits_V.clone().requires_grad_()
    expected = whole(leaf_V.log_softmax(0), log_p_V, loss)
    (expected_V,) = torch.autograd.grad(expected, leaf_V)
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient_V, expected_V, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sharp=st.sampled_from([0.1, 2.0, 12.0]))
def test_the_pull_of_a_term_is_its_slope_and_weights_go_into_the_masses(
    loss: LossConfig, seed: int, sharp: float
) -> None:
    log_p, log_q = random_logits(2, V, seed=seed, sharp=sharp).log_softmax(-1)
    divergence = DIVERGENCES[loss.kind]
    leaf = log_q.clone().requires_grad_()
    term = divergence.term(log_p, leaf, loss)
    (slope,) = torch.autograd.grad(term.sum(), leaf)
    torch.testing.assert_close(divergence.pull(log_p, log_q, loss), slope, rtol=1e-9, atol=1e-12)
    heavier = divergence.term(log_p + 1.7, log_q + 1.7, loss)
    torch.testing.assert_close(heavier, math.exp(1.7) * term.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        term.detach().sum(), whole(log_q, log_p, loss), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("loss", [loss for loss, of in SUITED if of == "student"], ids=name_of)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(0, V), places=st.integers(1, V))
def test_no_sample_of_the_student_lowers_the_bound_of_the_categories(
    loss: LossConfig, seed: int, k: int, places: int
) -> None:
    logits_V, teacher_V = random_logits(2, V, seed=seed, sharp=3.0)
    log_q_V, log_p_V = logits_V.log_softmax(0), teacher_V.log_softmax(0)
    bound, _ = estimate(logits_V, targets_of(log_p_V, k, 1, None), loss)
    for _, sample in samples_of("student", log_q_V, log_p_V, k, places):
        found, _ = estimate(logits_V, targets_of(log_p_V, k, 1, sample), loss)
        assert float(found) >= float(bound) - 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(0, V - 1), places=st.integers(1, V))
def test_what_the_teacher_never_draws_gives_its_sample_no_heavy_tail(
    seed: int, k: int, places: int
) -> None:
    logits_V, teacher_V = random_logits(2, V, seed=seed, sharp=6.0)
    log_q_V, log_p_V = logits_V.log_softmax(0), teacher_V.log_softmax(0)
    loss = LossConfig.model_validate({"kind": "forward_kl"})
    for _, sample in samples_of("teacher", log_q_V, log_p_V, k, places):
        _, gradient_V = estimate(logits_V, targets_of(log_p_V, k, 1, sample), loss)
        assert float(gradient_V.abs().max()) <= 1 + 1e-9  # as q − p has: masses add up to 1


@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_a_sample_suits_where_squares_of_the_gradient_stay_bounded(
    loss: LossConfig, of: SampleOf
) -> None:
    """However rare an id is on the side that draws, while the other one makes much of it."""

    def square(rare: float) -> float:
        drawn_V = torch.tensor([0.5, 0.5 - rare, rare]).double().log()
        other_V = torch.tensor([0.3, 0.2, 0.5]).double().log()
        log_p_V, log_q_V = (drawn_V, other_V) if of == "teacher" else (other_V, drawn_V)
        found = 0.0
        for share, sample in samples_of(of, log_q_V, log_p_V, 0, 1):
            _, gradient_V = estimate(log_q_V, targets_of(log_p_V, 0, 1, sample), loss)
            found += share * float(gradient_V.square().sum())
        return found

    assert (square(1e-12) > 20 * square(1e-4)) == (of not in loss.samples)


def test_importance_weights_are_cut_at_the_cap_and_counted() -> None:
    loss = LossConfig(kind="reverse_kl", importance_cap=2.0)
    log_q_V = torch.tensor([0.8, 0.1, 0.1]).double().log()
    log_mu_V, log_p_V = torch.full((3,), 1 / 3).double().log(), log_q_V.flip(0)
    samples = [sample for _, sample in drawn_tokens(log_mu_V, log_p_V)]
    cut, uncut = (targets_of(log_p_V, 0, 1, samples[v]) for v in (0, 1))
    for targets, share, weight in [(cut, 1.0, 2.0), (uncut, 0.0, 0.3)]:
        sides = Sides(plain_view(log_q_V[None], targets), targets)
        assert float(cut_share(sides, loss)) == share
        log_ratio = float(sides.student_sample_logprobs_TN - targets.sample.logprobs_TN)  # type: ignore[union-attr] # it has one
        expected = weight * (log_ratio - 1 + math.exp(-log_ratio))
        assert float(estimated(sides, DIVERGENCES["reverse_kl"], loss)) == pytest.approx(
            expected, abs=1e-6
        )
        assert float(over_categories(sides, DIVERGENCES["reverse_kl"], loss)) == pytest.approx(
            0.0, abs=1e-6
        )


def test_padding_of_a_stored_sample_adds_nothing() -> None:
    logits_V, teacher_V = random_logits(2, V, seed=3)
    log_p_V = teacher_V.log_softmax(0)
    ids = torch.tensor([[5, 7, -1]])
    nats = torch.tensor([[log_p_V[5], log_p_V[7], NEG_INF]])
    padded = threshold_sample("teacher", ids, nats, torch.tensor([[0.5, 0.25, 0.0]]).double())
    short = threshold_sample(
        "teacher", ids[:, :2], nats[:, :2], torch.tensor([[0.5, 0.25]]).double()
    )
    found, expected = (
        estimate(logits_V, targets_of(log_p_V, 2, 1, sample), LOSSES[0])
        for sample in (padded, short)
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
