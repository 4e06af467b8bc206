"""Weights of tokens that are known before any student is asked."""

import numpy as np
import pytest

from pipeline.learner.feed.weights import token_factors
from pipeline.learner.sequences import Batch, untrained_batch
from schemas.config.objective.weights import WeightsSection

IDS = [5, 7, 2, 7, 2, 2]
LENGTHS = [3, 1, 2]


def batch() -> Batch:
    """Return three responses; the last one was cut."""
    one = untrained_batch()
    both = {
        "response_tokens_B": np.array(LENGTHS),
        "prompt_tokens_B": np.ones(3, np.int64),
        "prompt_ids_P": np.zeros(3, np.int32),
        "token_ids_T": np.array(IDS, np.int32),
        "weight_T": np.ones(6, np.float32),
        "ended_B": np.array([True, True, False]),
    }
    return Batch(**{**{name: getattr(one, name) for name in Batch.__dataclass_fields__}, **both})


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (WeightsSection(), None),
        (WeightsSection(entropy_share=0.5), None),
        (WeightsSection(positions=((0, 1.0), (2, 0.0))), [1.0, 0.5, 0.0, 1.0, 1.0, 0.5]),
        (WeightsSection(positions=((1, 2.0),)), [2.0] * 6),
        (WeightsSection(end=3.0), [1.0, 1.0, 3.0, 3.0, 1.0, 1.0]),
        (WeightsSection(special=0.0, special_ids=(2, 7)), [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
        (
            WeightsSection(special=0.5, special_ids=(2,), end=0.25, positions=((0, 4.0),)),
            [4.0, 4.0, 1.0, 1.0, 2.0, 2.0],
        ),
    ],
)
def test_places_special_ids_and_ends_have_their_weights(
    weights: WeightsSection, expected: list[float] | None
) -> None:
    found = token_factors(batch(), weights)
    assert (None if found is None else found.tolist()) == expected


def test_a_sequence_of_which_nothing_is_trained_is_borne() -> None:
    found = token_factors(untrained_batch(), WeightsSection(end=0.0))
    assert found is not None and found.tolist() == [1.0]
