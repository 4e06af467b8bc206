"""Weights of tokens against their definitions, and what must not change them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.objectives.losses import token_losses
from pipeline.objectives.own.objective import OwnObjective
from pipeline.objectives.targets import Targets
from pipeline.objectives.tokens.rows import grid_of
from pipeline.objectives.tokens.weights import Weighed, token_weights
from schemas.config.loss import LossConfig
from schemas.config.objective.weights import WeightsSection
from tests.support.lossreference import build, random_logits, raw_columns, rng

ROWS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0, 2.0]),  # entropies and divergences with ties
            st.sampled_from([0.0, 0.01, 0.05, 0.3, 4.0]),
            st.sampled_from([0.0, 0.1, 3.0]),
            st.sampled_from([1.0, 0.5, 0.0]),
            st.booleans(),
        ),
        min_size=1,
        max_size=9,
    ),
    min_size=1,
    max_size=5,
)
KEYS = st.fixed_dictionaries(
    {
        "least_divergence": st.sampled_from([0.0, 0.05]),
        "entropy_share": st.sampled_from([1.0, 0.7, 0.3, 1e-9]),
        "divergence_share": st.sampled_from([1.0, 0.5]),
        "divergence_clip": st.sampled_from([None, 0.05]),
        "prefix": st.sampled_from([0.0, 0.5]),
        "rescale": st.booleans(),
    }
)


def weights_of(rows: list[list[Any]], keys: WeightsSection, *, first_row: int = 0) -> list[float]:
    flat = [token for row in rows for token in row]
    numbers = [first_row + n for n, row in enumerate(rows) for _ in row]
    entropy, divergence, ratio, factor = (
        torch.tensor([token[field] for token in flat], dtype=torch.float64) for field in range(4)
    )
    found_T = token_weights(
        Weighed(entropy, divergence, ratio),
        keys,
        grid_of(torch.tensor(numbers)),
        trained_T=torch.tensor([token[4] for token in flat]),
        factor_T=factor,
    )
    values: list[float] = found_T.tolist()
    return values


def by_definition(row: list[Any], keys: WeightsSection) -> list[float]:
    """The weights of one response, one token at a time."""
    trained = [t for t, token in enumerate(row) if token[4]]

    def top(field: int, share: float) -> set[int]:
        order = sorted(trained, key=lambda t: (-row[t][field], t))
        count = max(1, math.ceil(share * len(trained) - 1e-9))
        return set(order[:count]) if share < 1.0 else set()

    shares = (keys.entropy_share, keys.divergence_share)
    kept = top(0, shares[0]) | top(1, shares[1]) if min(shares) < 1.0 else set(trained)
    total, found = sum(row[t][2] for t in trained), []
    for t, (_, divergence, _, factor, is_trained) in enumerate(row):
        weight = float(is_trained and t in kept and divergence >= keys.least_divergence) * factor
        if keys.divergence_clip is not None and divergence > keys.divergence_clip:
            weight *= keys.divergence_clip / divergence
        earlier = sum(row[u][2] for u in trained if u < t)
        found.append(weight * (1 + keys.prefix * (1 - earlier / max(total, 1e-12))))
    if keys.rescale and sum(found) > 0:
        found = [weight * len(trained) / sum(found) for weight in found]
    return found


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, keys=KEYS)
def test_each_token_has_the_weight_of_the_definitions(
    rows: list[list[Any]], keys: dict[str, Any]
) -> None:
    section = WeightsSection(**keys)
    expected = [weight for row in rows for weight in by_definition(row, section)]
    assert weights_of(rows, section) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, keys=KEYS, data=st.data())
def test_a_response_has_its_weights_in_any_batch_of_any_process(
    rows: list[list[Any]], keys: dict[str, Any], data: st.DataObject
) -> None:
    section = WeightsSection(**keys)
    whole = weights_of(rows, section)
    parts = data.draw(st.integers(1, 3))
    dealt = [rows[rank::parts] for rank in range(parts)]
    alone = {n: weights_of([row], section, first_row=7) for n, row in enumerate(rows)}
    assert whole == [weight for n in range(len(rows)) for weight in alone[n]]
    for rank, mine in enumerate(dealt):
        expected = [weight for n in range(rank, len(rows), parts) for weight in alone[n]]
        assert not mine or weights_of(mine, section) == expected


@pytest.mark.parametrize("share", [0.1, 0.25, 0.7, 0.9])
def test_a_share_keeps_so_many_tokens_the_first_of_equal_ones(share: float) -> None:
    rows = [[(1.0, 0.1, 0.0, 1.0, True)] * count for count in (10, 1, 4)]
    found = weights_of(rows, WeightsSection(entropy_share=share))
    for first, count in ((0, 10), (10, 1), (11, 4)):
        kept = math.ceil(share * count - 1e-9)
        assert found[first : first + count] == [1.0] * kept + [0.0] * (count - kept)


def problem(weight_T: Tensor | None = None) -> tuple[Tensor, Targets]:
    logits_TV, teacher_TV = random_logits(9, 12, seed=1), random_logits(9, 12, seed=2)
    tokens_T = torch.randint(0, 12, (9,), generator=rng(3))
    mu_T = logits_TV.log_softmax(-1).gather(-1, tokens_T[:, None])[:, 0]
    columns = raw_columns(teacher_TV, tokens_T, 4, mu_T=mu_T)
    targets = build(columns, **({} if weight_T is None else {"weight_T": weight_T}))
    return logits_TV, replace(targets, row_T=torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2]))


WEIGHTLESS = WeightsSection()
EVERY = {"entropy_share": 0.5, "divergence_share": 0.25, "prefix": 0.5, "divergence_clip": 0.3}


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "tvd", "policy_gradient"])
def test_weights_are_constants_that_scale_the_gradient_of_each_token(kind: str) -> None:
    plain = LossConfig.model_validate({"kind": kind})
    weighted = LossConfig.model_validate({"kind": kind, "weights": EVERY})
    logits_TV, targets = problem()
    found = []
    for loss in (plain, weighted):
        leaf_TV = logits_TV.clone().requires_grad_()
        loss_T, values = token_losses(leaf_TV, targets, loss)
        found.append((loss_T.detach(), torch.autograd.grad(loss_T.sum(), leaf_TV)[0]))
    weight_T = values["token_weight"]
    assert 0 < int((weight_T > 0).sum()) < 9
    assert torch.equal(values["token_kept"], (weight_T > 0).float())
    torch.testing.assert_close(found[1][0], weight_T * found[0][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1][1], weight_T[:, None] * found[0][1], rtol=1e-5, atol=1e-7)
    kept_T = values["divergence_clipped"] == 1
    assert bool(kept_T.any())


def test_a_loss_of_ones_own_is_weighed_by_its_own_value() -> None:
    given = {"kind": "losses.py:distance", "weights": {"divergence_share": 0.5}}
    loss = OwnObjective.of(
        LossConfig.model_validate(given),
        lambda log_q, log_p: (log_p.exp() - log_q.exp()).abs().sum(-1),
        gives_slope=False,
    )
    logits_TV, targets = problem()
    loss_T, values = token_losses(logits_TV, targets, loss)
    plain_T, _ = token_losses(logits_TV, targets, loss.model_copy(update={"weights": WEIGHTLESS}))
    for row, count in ((0, 2), (1, 1), (2, 2)):
        of_row = targets.row_T == row
        least = plain_T[of_row].topk(count).values.min()
        assert torch.equal(values["token_kept"][of_row], (plain_T[of_row] >= least).float())
    torch.testing.assert_close(loss_T, plain_T * values["token_weight"])


def test_a_clip_makes_the_divergence_of_a_token_that_of_the_clip() -> None:
    logits_TV, targets = problem()
    loss = LossConfig(kind="forward_kl", weights=WeightsSection(divergence_clip=0.05))
    whole_T, _ = token_losses(logits_TV, targets, LossConfig(kind="forward_kl"))
    clipped_T, values = token_losses(logits_TV, targets, loss)
    torch.testing.assert_close(clipped_T, whole_T.clamp(max=0.05), rtol=1e-6, atol=1e-7)
    assert torch.equal(values["divergence_clipped"], (whole_T > 0.05).float())


def test_untrained_tokens_stay_out_of_every_selection_whatever_they_hold() -> None:
    loss = LossConfig(
        kind="reverse_kl", weights=WeightsSection.model_validate({**EVERY, "rescale": True})
    )
    weight_T = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 1.0, 1.0, 0.0])
    logits_TV, targets = problem(weight_T)
    expected_T, expected = token_losses(logits_TV, targets, loss)
    spoiled_TV = logits_TV.masked_fill((weight_T == 0)[:, None], math.nan)
    found_T, found = token_losses(spoiled_TV, targets, loss)
    assert torch.equal(found_T, expected_T)
    assert torch.equal(found["token_weight"], expected["token_weight"])
    assert not bool(found["token_weight"][weight_T == 0].any())
    sums = [float(found["token_weight"][targets.row_T == row].sum()) for row in (0, 2)]
    assert sums == pytest.approx([2.0, 3.0])  # 1 on average, of the trained ones


def test_without_weights_nothing_is_multiplied() -> None:
    logits_TV, targets = problem()
    loss_T, values = token_losses(logits_TV, targets, LossConfig(kind="reverse_kl"))
    none = LossConfig(kind="reverse_kl", weights=WeightsSection(prefix=0.0, entropy_share=1.0))
    assert torch.equal(token_losses(logits_TV, targets, none)[0], loss_T)
    assert torch.equal(values["token_weight"], torch.ones(9))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"positions": [(4, 1.0), (4, 0.5)]}, "must rise"),
        ({"special": 0.0}, "there are none"),
        ({"entropy_share": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightsSection.model_validate(keys)
