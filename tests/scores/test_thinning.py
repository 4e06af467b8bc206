"""Samples that are thinned: each id's chance is that of a sample of as many places, to 1e-12."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.scores.inclusion import inclusions
from pipeline.scores.thinning import needed_places, thinned
from pipeline.scores.threshold import threshold_sample

WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]) | st.floats(0.01, 50), min_size=2, max_size=12
).filter(any)


def logs(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(values)


def sampled(p_TV: NDArray[Any], u_T: NDArray[Any], places: int) -> tuple[Any, Any]:
    """Return threshold samples, ids and log-probabilities in float64."""
    ids_TN = threshold_sample(torch.from_numpy(p_TV), torch.from_numpy(u_T), places)[0].numpy()
    mass_TN = np.take_along_axis(p_TV, np.maximum(ids_TN, 0), axis=1)
    return ids_TN, logs(np.where(ids_TN < 0, 0.0, mass_TN))


def chances(p_V: NDArray[Any], places: int) -> NDArray[Any]:
    """Return each id's chance in a sample of so many places, found from the definition."""
    falling, some = -np.sort(-p_V), int((p_V > 0).sum())
    if places >= some:
        return np.asarray(p_V > 0, np.float64)
    tau = min(falling[m:].sum() / (places - m) for m in range(places))
    return np.asarray(np.minimum(p_V / tau, 1.0))


@given(WEIGHTS, st.integers(1, 12), st.data())
@settings(max_examples=25, deadline=None)
def test_a_thinned_sample_is_one_of_fewer_places(
    weights: list[float], places: int, data: st.DataObject
) -> None:
    p_V = np.array(weights) / sum(weights)
    fewer = data.draw(st.integers(1, places))
    grid = (np.arange(400) + 0.5) / 400
    first = np.repeat(grid[::10], 40)  # what the sample was drawn with
    second = np.tile((np.arange(40) + 0.5) / 40, 40)
    ids_TN, logprobs_TN = sampled(np.tile(p_V, (len(first), 1)), first, places)
    kept_TN, nats_TN = thinned(ids_TN, logprobs_TN, np.full(len(first), fewer), second)
    count = min(fewer, int((p_V > 0).sum()))
    assert ((kept_TN >= 0).sum(axis=1) == count).all()
    assert (kept_TN[:, count:] == -1).all() and np.isneginf(nats_TN[:, count:]).all()
    assert (np.diff(nats_TN[:, :count], axis=1) <= 0).all()
    found = np.bincount(kept_TN[kept_TN >= 0], minlength=len(p_V)) / len(first)
    expected = chances(p_V, fewer)
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert (found[expected == 1.0] == 1.0).all()
    # what a reader finds of what is left is that very chance, but for float32
    derived_TN = inclusions(nats_TN, np.zeros(len(first)))
    there = kept_TN >= 0
    np.testing.assert_allclose(derived_TN[there], expected[kept_TN[there]], atol=5e-3)


def test_a_students_sample_is_thinned_without_bias() -> None:
    """By exact integration over both numbers, of every interval in which nothing changes."""
    p_V = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    expected = np.zeros(len(p_V))
    for share, u in intervals(lambda u: sampled(p_V[None], np.array([u]), 5)[0].tobytes()):
        ids_TN, logprobs_TN = sampled(p_V[None], np.array([u]), 5)

        def drawn(v: float, ids: Any = ids_TN, nats: Any = logprobs_TN) -> Any:
            return thinned(ids, nats, np.array([3]), np.array([v]))

        for part, v in intervals(lambda v: drawn(v)[0].tobytes()):
            kept_TN, nats_TN = drawn(v)
            there = kept_TN >= 0
            chance = inclusions(nats_TN, np.zeros(1))[there]
            weight = np.exp(nats_TN[there].astype(np.float64)) / chance
            np.add.at(expected, kept_TN[there], share * part * weight)
    np.testing.assert_allclose(expected, p_V, atol=1e-7)


def intervals(of: Any, steps: int = 64) -> Any:
    """Yield widths and middles of the intervals of [0, 1) in which a function does not change."""
    edges = [0.0]
    grid = np.linspace(0, 1, steps + 1)[:-1]
    for low, high in zip(grid, [*grid[1:], np.nextafter(1.0, 0.0)], strict=True):
        begin, end = low, high
        while of(begin) != of(end):
            left, right = begin, end
            for _ in range(60):
                middle = (left + right) / 2
                left, right = (middle, right) if of(begin) == of(middle) else (left, middle)
            edges.append(right)
            begin = right
    edges.append(1.0)
    for begin, end in zip(edges, edges[1:], strict=False):
        yield end - begin, (begin + end) / 2


def test_flat_positions_keep_more_than_peaked_ones_and_all_together_a_budget() -> None:
    random = np.random.default_rng(0)
    sharp_T = np.repeat([0.5, 2.0, 8.0], 20)
    logits_TV = random.standard_normal((60, 500)) * sharp_T[:, None]
    p_TV = np.exp(logits_TV - logits_TV.max(1, keepdims=True))
    p_TV /= p_TV.sum(1, keepdims=True)
    ids_TN, logprobs_TN = sampled(p_TV, random.random(60), 48)
    places_T = needed_places(logprobs_TN, 16)
    assert 15.5 * 60 <= places_T.sum() <= 16 * 60
    assert places_T[:20].min() >= places_T[20:40].max() > places_T[40:].max()
    assert places_T.min() >= 1 and places_T.max() <= 48
    kept_TN, _ = thinned(ids_TN, logprobs_TN, places_T, random.random(60))
    np.testing.assert_array_equal((kept_TN >= 0).sum(axis=1), places_T)


@pytest.mark.parametrize("mean", [1, 4, 8])
def test_equal_positions_keep_equal_numbers(mean: int) -> None:
    p_TV = np.full((6, 40), 1 / 40)
    _, logprobs_TN = sampled(p_TV, np.linspace(0, 0.9, 6), 8)
    assert (needed_places(logprobs_TN, mean) == mean).all()


def test_a_position_with_one_id_keeps_it_and_leaves_its_places_to_others() -> None:
    p_TV = np.zeros((2, 40))
    p_TV[0, 7] = 1.0
    p_TV[1] = 1 / 40
    ids_TN, logprobs_TN = sampled(p_TV, np.array([0.1, 0.2]), 12)
    places_T = needed_places(logprobs_TN, 6)
    assert places_T.tolist() == [1, 11]
    kept_TN, _ = thinned(ids_TN, logprobs_TN, places_T, np.array([0.3, 0.4]))
    assert kept_TN[0].tolist() == [7] + [-1] * 11


def test_all_places_are_kept_where_the_budget_has_them() -> None:
    random = np.random.default_rng(1)
    p_TV = random.dirichlet(np.ones(30), 5)
    ids_TN, logprobs_TN = sampled(p_TV, random.random(5), 10)
    places_T = needed_places(logprobs_TN, 10)
    assert (places_T == 10).all()
    kept_TN, nats_TN = thinned(ids_TN, logprobs_TN, places_T, random.random(5))
    np.testing.assert_array_equal(kept_TN, ids_TN)
    np.testing.assert_allclose(nats_TN, logprobs_TN, rtol=1e-6)
