"""What is known of the weights of a batch's tokens before any student is asked. Pure.

Shapes: B sequences; T response tokens, those of all sequences end to end.
"""

import numpy as np

from pipeline.learner.sequences import Batch
from schemas.columns import Floats
from schemas.config.objective.weights import WeightsSection


def token_factors(batch: Batch, weights: WeightsSection) -> Floats | None:
    """Return the factor of each token's distillation loss, None where all are 1."""
    asked = weights.positions or weights.special != 1.0 or weights.end != 1.0
    if not asked:
        return None
    counts_B = batch.response_tokens_B
    ends_B = np.cumsum(counts_B)
    place_T = np.arange(len(batch.token_ids_T)) - np.repeat(ends_B - counts_B, counts_B)
    factor_T = np.ones(len(place_T))
    if weights.positions:
        places, factors = zip(*weights.positions, strict=True)
        factor_T = np.interp(place_T, places, factors)
    is_end_T = np.zeros(len(place_T), dtype=np.bool_)
    is_end_T[ends_B - 1] = batch.ended_B
    special_T = np.isin(batch.token_ids_T, weights.special_ids) & ~is_end_T
    factor_T = factor_T * np.where(is_end_T, weights.end, 1.0)
    factor_T = factor_T * np.where(special_T, weights.special, 1.0)
    return np.asarray(factor_T, dtype=np.float32)
