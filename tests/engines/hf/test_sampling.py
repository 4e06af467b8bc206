"""Sampled distributions against id-by-id references."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.hf.sampling import draw, processed_logprobs

LAST = 1 - 2**-53
"""The largest uniform number."""

LOGITS = st.lists(st.integers(-400, 400), min_size=1, max_size=12, unique=True).map(
    lambda values: [value / 50 for value in values]
)
UNIFORM = st.integers(0, 2**53 - 1).map(lambda n: n * 2.0**-53)


def reference(
    logits: Sequence[float], temperature: float, top_p: float, top_k: int
) -> list[float] | None:
    """Log-probabilities, id by id in float64; None where top-p cuts too near a sum to tell."""
    scaled = [x / (temperature or 1.0) for x in logits]
    kept = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if temperature == 0.0:
        top_p, top_k = 1.0, 0
    if top_k:
        kept = kept[:top_k]
    total = sum(math.exp(scaled[i]) for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if abs(mass - top_p) < 1e-5 and top_p < 1.0:
            return None
        if mass < top_p or top_p == 1.0:
            nucleus.append(i)
        mass += math.exp(scaled[i]) / total
    log_z = math.log(sum(math.exp(scaled[i]) for i in nucleus))
    return [x - log_z if i in nucleus else -math.inf for i, x in enumerate(scaled)]


@given(
    LOGITS,
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([1e-6, 0.2, 0.5, 0.9, 0.999, 1.0]),
    st.integers(0, 14),
)
def test_temperature_then_top_k_then_top_p_each_on_what_the_last_left(
    logits: list[float], temperature: float, top_p: float, top_k: int
) -> None:
    expected = reference(logits, temperature, top_p, top_k)
    if expected is None:
        return
    found = processed_logprobs(
        torch.tensor([logits, logits[::-1]]), temperature=temperature, top_p=top_p, top_k=top_k
    )
    assert found.dtype == torch.float32
    for row, values in zip(found, (expected, expected[::-1]), strict=True):
        np.testing.assert_allclose(row.numpy(), values, atol=2e-5)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.5, 0), (1.0, 1), (0.3, 2)])
def test_temperature_zero_gives_the_models_own_distribution(top_p: float, top_k: int) -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 2.0]])
    found = processed_logprobs(logits_BV, temperature=0.0, top_p=top_p, top_k=top_k)
    torch.testing.assert_close(found, logits_BV.log_softmax(-1))


def test_half_precision_logits_are_processed_in_float32() -> None:
    logits_BV = torch.tensor([[0.1, 0.2, 5.0]], dtype=torch.bfloat16)
    found = processed_logprobs(logits_BV, temperature=0.7, top_p=1.0, top_k=0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (logits_BV.double() / 0.7).log_softmax(-1).float())


@given(LOGITS, UNIFORM, st.integers(0, 3))
def test_a_draw_inverts_the_cumulative_distribution(
    logits: list[float], uniform: float, masked: int
) -> None:
    values = [-math.inf if i and i % 4 == masked else x for i, x in enumerate(logits)]
    logprobs = torch.tensor([values]).log_softmax(-1)
    id_ = int(draw(logprobs, torch.tensor([uniform], dtype=torch.float64))[0])
    probs = [math.exp(x) for x in logprobs[0].tolist()]
    below, total = sum(probs[:id_]), sum(probs)
    assert probs[id_] > 0
    assert below / total <= uniform + 1e-12
    assert uniform < (below + probs[id_]) / total + 1e-12


@given(LOGITS, st.integers(1, 8), st.integers(1, 8))
def test_the_ends_of_the_unit_interval_never_draw_a_dropped_id(
    logits: list[float], before: int, after: int
) -> None:
    values = [-math.inf] * before + logits + [-math.inf] * after
    logprobs = torch.tensor([values, values]).log_softmax(-1)
    first, last = draw(logprobs, torch.tensor([0.0, LAST], dtype=torch.float64)).tolist()
    assert before <= first <= last < before + len(logits)
    assert first == next(i for i in range(len(values)) if logprobs[0, i].double().exp() > 0)


def test_each_row_is_drawn_with_its_own_number() -> None:
    logprobs = torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log()
    numbers = [0.1, 0.5], [0.5, 0.1], [0.3, 0.8]
    found = [draw(logprobs, torch.tensor(u, dtype=torch.float64)).tolist() for u in numbers]
    assert found == [[0, 0], [1, 0], [1, 1]]
