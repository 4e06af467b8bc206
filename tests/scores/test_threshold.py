"""Threshold samples: fair to 1e-12 by integration, distinct, and invertible from what is stored."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.scores.inclusion import inclusions, log_thresholds
from pipeline.scores.threshold import filled, threshold_sample

WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.0, 1e-12, 1e-3, 0.5, 1.0, 1.0, 1.0, 3.0]) | st.floats(1e-6, 1e3),
    min_size=1,
    max_size=24,
).filter(any)


def breaks(weights_V: NDArray[Any], places: int) -> NDArray[Any]:
    """Return the numbers between which the sample does not change, found from the definition."""
    falling = -np.sort(-weights_V)
    places = min(places, int((weights_V > 0).sum()))
    tau = min(falling[m:].sum() / (places - m) for m in range(places))
    ends = np.minimum(weights_V / tau, 1.0).cumsum()
    some = np.cumsum(np.where(weights_V >= tau * (1 - 1e-12), 0.0, weights_V)) / tau
    return np.unique(np.concatenate([[0.0, 1.0], ends % 1.0, some % 1.0]))


def sampled(weights_V: NDArray[Any], u: NDArray[Any], places: int) -> tuple[Any, Any]:
    """Return the samples of one distribution for many uniform numbers."""
    weights_TV = torch.from_numpy(weights_V).repeat(len(u), 1)
    ids, tau = threshold_sample(weights_TV, torch.from_numpy(u), places)
    return ids.numpy(), tau.numpy()


def logs(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(values)


@given(WEIGHTS, st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_the_expectation_of_a_sample_is_the_distribution(weights: list[float], places: int) -> None:
    p_V = np.array(weights) / sum(weights)
    edges = breaks(p_V, places)
    share, u = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    ids_TN, tau_T = sampled(p_V, u, places)
    there = ids_TN >= 0
    mass_TN = np.where(there, p_V[ids_TN], 0.0)
    incl_TN = inclusions(logs(mass_TN), np.zeros(len(u)))
    estimate_TN = np.divide(mass_TN, incl_TN, where=there, out=np.zeros_like(mass_TN))
    np.testing.assert_allclose(estimate_TN.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        estimate_TN[there], np.maximum(mass_TN, tau_T[:, None])[there], atol=1e-12
    )
    expected = np.zeros(len(p_V))
    rows = np.broadcast_to(share[:, None], ids_TN.shape)
    np.add.at(expected, ids_TN[there], (rows * estimate_TN)[there])
    np.testing.assert_allclose(expected, p_V, rtol=0, atol=1e-12)


@given(WEIGHTS, st.integers(1, 30), st.lists(st.floats(0, 1, exclude_max=True), min_size=1))
@settings(max_examples=150, deadline=None)
def test_ids_are_distinct_have_weight_and_fall(
    weights: list[float], places: int, u: list[float]
) -> None:
    w_V = np.array(weights, np.float32)
    ids_TN, _ = sampled(w_V, np.array(u), places)
    kept = min(places, int((w_V > 0).sum()))
    assert ids_TN.shape == (len(u), places)
    for row in ids_TN:
        assert (row[:kept] >= 0).all() and (row[kept:] == -1).all()
        assert len(set(row[:kept].tolist())) == kept
        assert (w_V[row[:kept]] > 0).all()
        order = [(-float(w_V[i]), i) for i in row[:kept].tolist()]
        assert order == sorted(order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("places", [1, 16, 300, 4096])
def test_a_large_vocabulary_is_sampled_as_its_inclusion_says(
    places: int, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(places)
    weights_V = (torch.randn(20_000, generator=random, dtype=torch.float64) * 3).exp().to(dtype)
    u = (torch.arange(16, dtype=torch.float64) + 0.3) / 16
    ids_TN, tau_T = threshold_sample(weights_V.repeat(16, 1), u, places)
    mass_TN: Tensor = weights_V.double()[ids_TN]
    total = weights_V.double().sum().log().repeat(16).numpy()
    assert all(len(row.unique()) == places for row in ids_TN)
    found = np.exp(log_thresholds(mass_TN.log().numpy(), total))
    np.testing.assert_allclose(found, tau_T.numpy(), rtol=1e-9)
    estimate = mass_TN.numpy() / inclusions(mass_TN.log().numpy(), total)
    np.testing.assert_allclose(np.log(estimate.sum(axis=1)), total, atol=1e-12)


def test_a_position_has_the_same_sample_alone_and_in_any_batch() -> None:
    random = torch.Generator().manual_seed(0)
    weights_TV = (torch.randn(7, 500, generator=random) * 2).exp()
    u = torch.rand(7, generator=random, dtype=torch.float64)
    together, _ = threshold_sample(weights_TV, u, 9)
    for row in range(7):
        alone, _ = threshold_sample(weights_TV[row : row + 1], u[row : row + 1], 9)
        assert alone[0].tolist() == together[row].tolist()


def test_a_sample_that_has_all_of_the_mass_is_certain() -> None:
    logprobs = logs(np.array([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4]))
    found = inclusions(logprobs, np.array([0.0, 0.0, -np.inf]))
    np.testing.assert_allclose(found, [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], atol=1e-12)


def test_masses_that_rounding_left_too_large_are_certain() -> None:
    logprobs = logs(np.array([[0.9, 0.2, 0.01]]))
    assert log_thresholds(logprobs, np.zeros(1)).tolist() == [-np.inf]
    assert inclusions(logprobs, np.zeros(1)).tolist() == [[1.0, 1.0, 1.0]]


def test_places_without_an_id_are_filled_with_the_lowest_ids_without_weight() -> None:
    weights_TV = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2]])
    u = torch.tensor([0.3, 0.3], dtype=torch.float64)
    ids_TN, _ = threshold_sample(weights_TV, u, 4)
    assert ids_TN[0].tolist() == [1, 4, -1, -1]
    found_TN = filled(ids_TN, weights_TV)
    assert found_TN[0].tolist() == [1, 4, 0, 2]
    assert found_TN[1].tolist() == ids_TN[1].tolist()


def test_weights_that_are_no_numbers_give_ids_that_there_are() -> None:
    weights_TV = torch.full((2, 5), torch.nan)
    ids_TN, _ = threshold_sample(weights_TV, torch.zeros(2, dtype=torch.float64), 3)
    found_TN = filled(ids_TN, weights_TV)
    assert found_TN.min() >= 0 and found_TN.max() < 5
