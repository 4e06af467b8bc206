"""Bias and noise of gradients against their definitions, by enumeration in float64."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.objectives.check.moments import Gradients, Worth, step_cosine, worth


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def layers(gradients: Gradients) -> Tensor:
    """Gradient of the layer at each position, [T, H·H]."""
    return torch.einsum("th,tg->thg", gradients.gradient_TH, gradients.hidden_TH).flatten(1)


def test_products_and_variances_are_expected_to_be_those_of_the_means() -> None:
    """Over every draw of three positions from four equally likely ones."""
    hidden, one, other = random(4, 3, seed=0), random(4, 3, seed=1), random(4, 3, seed=2)
    found = torch.zeros(3).double()
    draws = list(product(range(4), repeat=3))
    for draw in draws:
        a, b = (Gradients(g[list(draw)], hidden[list(draw)]) for g in (one, other))
        told = [a.product(a), a.product(b), a.variance()]
        found += torch.tensor(told, dtype=torch.float64) / len(draws)
    mine, theirs = layers(Gradients(one, hidden)), layers(Gradients(other, hidden))
    mean, variance = mine.mean(0), (mine - mine.mean(0)).square().sum(1).mean()
    expected = torch.stack([mean @ mean, mean @ theirs.mean(0), variance])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_estimator_without_noise_is_known_by_its_mean() -> None:
    hidden = torch.ones(5, 2).double()
    right = Gradients(torch.tensor([[3.0, 0.0]]).double().expand(5, 2), hidden)
    exact = worth(right, right)
    assert exact.bias == 0.0 and exact.variance == pytest.approx(0.0, abs=1e-12)
    assert exact.cosine(1) == pytest.approx(1.0)


def test_bias_turns_a_step_however_long_and_noise_less_the_longer_it_is() -> None:
    hidden = torch.ones(400, 2).double()
    noise = 0.1 * random(400, 2, seed=3)
    right = Gradients(torch.tensor([3.0, 0.0]) + noise, hidden)
    biased = Gradients(right.gradient_TH + torch.tensor([0.0, 4.0]), hidden)
    found = worth(biased, right)
    assert found.bias == pytest.approx(4 / 3, rel=0.05)
    assert found.aim == pytest.approx(3 / 5, rel=0.05)
    assert found.cosine(10**9) == pytest.approx(found.aim)
    fair = worth(right, right)
    assert fair.noise is not None
    assert fair.cosine(fair.noise) == pytest.approx(math.sqrt(0.5))
    assert fair.noise == pytest.approx(right.variance() / 18, rel=0.1)


def test_what_noise_hides_is_not_told() -> None:
    lost = Gradients(random(200, 4, seed=4), random(200, 4, seed=5))
    found = worth(lost, lost)
    assert found == Worth(None, None, None, None, found.variance)
    assert found.variance == pytest.approx(16, rel=0.3) and found.cosine(1000) is None


def test_sums_over_the_same_tokens_have_the_cosine_that_is_expected() -> None:
    """Over every draw of two tokens from three equally likely ones, squares and products apart."""
    hidden, right, off = random(3, 2, seed=4), random(3, 2, seed=5), random(3, 2, seed=6)
    many = [part.repeat(700, 1) for part in (hidden, right + 3.0, right + 3.0 + 0.3 * off)]
    exact, found = Gradients(many[1], many[0]), Gradients(many[2], many[0])
    one, other = layers(found)[:3], layers(exact)[:3]
    products = torch.zeros(3).double()
    for i, j in product(range(3), repeat=2):
        f, g = one[i] + one[j], other[i] + other[j]
        products += torch.stack([f @ g, f @ f, g @ g])
    expected = float(products[0] / (products[1] * products[2]).sqrt())
    assert step_cosine(found, exact, 2) == pytest.approx(expected, abs=2e-3)
    assert step_cosine(exact, exact, 2) == pytest.approx(1.0)
    aside = Gradients(torch.zeros_like(many[1]), many[0])
    assert step_cosine(aside, exact, 2) == 0.0
